"""Whatever is typed for a setting: a configuration or one line, never a traceback."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from attnzoo.train import config
from attnzoo.train.errors import UserError

KEYS = [name for name, _ in config.fields()]
SECTIONS = [name for name, _ in config.sections()]
PARTS = sorted({part for key in KEYS for part in key.split('.')})

# What YAML, OmegaConf, Python or the schema give a meaning to.
SIGNS = """
[ ] { } : , - ? ! & * | > % @ ` # ' " \\ \\0 \\ud800 ${ ${x} ${oc.env:HOME} ??? !!set !!binary !!float <<: *a &a
!!python/object:os.system [*a] null ~ true no on nan .nan inf -.inf 1e400 -1 0 1 2 0.5 1e-3 0x10 1_0 1:30 2020-01-01 -0
[0.5,1] [1,0.5] [0,0,0] {a:1} {1:2} [[[[ ]]]] 9999999999999999999999 adamw cosine cpu auto digits name kwargs
"""
FRAGMENTS = SIGNS.split()


def numbers() -> st.SearchStrategy[str]:
    return st.one_of(st.integers(), st.floats(), st.integers(10**18, 10**400)).map(str)


def values() -> st.SearchStrategy[str]:
    pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=4)
    nested = st.recursive(
        numbers() | st.sampled_from(FRAGMENTS), lambda inner: st.lists(inner, max_size=4).map(in_brackets)
    )
    return st.one_of(numbers(), st.text(max_size=12), pieces.map(''.join), pieces.map(' '.join), nested)


def in_brackets(items: list[str]) -> str:
    return f'[{", ".join(items)}]'


def keys() -> st.SearchStrategy[str]:
    made_up = st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=4).map('.'.join)
    kwargs = st.text(max_size=6).map('model.kwargs.{}'.format)
    return st.one_of(*[st.sampled_from(KEYS)] * 4, st.sampled_from(SECTIONS), kwargs, made_up)


def overrides() -> st.SearchStrategy[str]:
    return st.tuples(keys(), values()).map('='.join) | st.text(max_size=10)


@settings(max_examples=300, deadline=None)
@given(st.lists(overrides(), max_size=3))
@example(['schedule.warmup_lr=['])
@example(['output=!!python/object/apply:os.system ["x"]'])
@example(['output=${x}'])
@example(['output=???'])
@example([f'seed={"9" * 5000}'])
@example([f'optim.lr={"9" * 400}'])
@example(['optim.lr=.nan'])
@example(['optim.lr=nan'])
@example([f'output={"[" * 500}'])
@example(['model.kwargs={a: &x [*x]}'])
@example(['model.kwargs={1: 2}'])
@example(['model.kwargs=null', 'model.kwargs.a.b=1'])
@example(['data.mean=[[1, 2], 3, 4]'])
@example(['output="a\\0b"'])
def test_any_settings_are_a_configuration_or_one_line(tmp_path_factory, given):
    try:
        made = config.resolve({}, given, tell=lambda _: None)
    except UserError as error:
        text = str(error)
        assert len(text.splitlines()) == 1 and len(text) < 1000
        return
    # What passes is written with the run, and read again.
    path = tmp_path_factory.getbasetemp() / 'config.yaml'
    path.write_text(config.to_yaml(made), encoding='utf-8')
    assert config.load(str(path), ['output=x']) == config.resolve({}, [*given, 'output=x'], tell=lambda _: None)
