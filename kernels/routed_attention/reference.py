"""Routed attention in plain PyTorch: the definition of the op, and what runs where a kernel does not.

Every query region attends to the few key regions that its route names (bi-level routing attention, arXiv 2303.08810).
Shapes below use

    B batch   H, W query map   h, w key map (smaller when keys are pooled)   C channels   N heads   D = C / N
    R = Ry * Rx regions, row by row   n tokens of a query region   m tokens of a key region   K regions of a route

Two formulations give the same result. Gathering the K regions of every route handles B * R * K * m keys and is right
when routes name few regions. Where they name many small ones, a dense attention under a region mask is several times
faster, because its matrix products are large.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnzoo.kernels._autograd import gradients_by_autograd, wants_autograd
from attnzoo.kernels._dispatch import is_plain_eager
from attnzoo.kernels._fx import is_symbolic
from attnzoo.kernels._sdpa import full_attention

# Gathered keys and values that one step may hold: enough for full-speed products, little beside a feature map.
_STEP_BYTES = 2 << 20
# Dense attention takes over when a route covers this share of the map and its regions have no more tokens than this.
_DENSE_SHARE = 0.2
_DENSE_TOKENS = 16


def route_regions(
    q: Tensor,
    k: Tensor,
    regions: tuple[int, int],
    top_k: int,
    scale: float,
    valid: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose, for every query region, the key regions whose mean key is most similar to its mean query.

    Args:
        q: Queries, [B, H, W, C].
        k: Keys, [B, H, W, C].
        regions: Regions along height and width, (Ry, Rx); they divide H and W.
        top_k: Regions to choose, K, at most R.
        scale: Factor of the scores; it shapes the weights, not the choice.
        valid: Height and width of the map without its padding: padding then takes no part in the means, and regions
            that hold nothing else are chosen last. None: all positions count.

    Returns:
        Routes [B, R, K], int64, and their weights [B, R, K], the softmax of the chosen scores. No gradient flows.
    """
    tokens = _tokens_of_regions(k, regions, valid)
    mean_q, mean_k = (
        _region_means(q.detach(), tokens, regions, valid),
        _region_means(k.detach(), tokens, regions, valid),
    )
    scores = (mean_q * scale) @ mean_k.transpose(1, 2)
    if valid is not None:
        scores = scores.masked_fill((tokens == 0)[None, None, :], float('-inf'))
    chosen, routes = torch.topk(scores, top_k, dim=-1)
    return routes, chosen.softmax(-1).to(q.dtype)


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    regions: tuple[int, int],
    num_heads: int,
    scale: float,
    weights: Tensor | None = None,
    valid: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every query region to the key regions of its route. The public function tells the arguments."""
    if torch.jit.is_scripting():
        dense = False
    else:
        dense = weights is None and _prefers_dense(q, routes, regions)
    if dense:
        return _dense(q, k, v, routes, regions, num_heads, scale, valid, dropout)
    index = routes + torch.arange(routes.shape[0], device=routes.device)[:, None, None] * routes.shape[1]
    index = index.flatten(0, 1)
    factors = None if weights is None else weights.detach().flatten(0, 1)
    bias: Tensor | None = None
    if valid is not None:
        padding = _padding_bias(k, valid).view(1, k.shape[1], k.shape[2], 1)
        bias = _rows(padding, regions, 1).flatten(1)[routes.flatten(0, 1)].flatten(1)[:, None, None, :]
    if torch.jit.is_scripting():
        out = _attend_maps(q, k, v, index, regions, num_heads, scale, factors, bias, dropout)
    else:
        # Weights that were dropped could not be computed again, which the steps do in the backward.
        if dropout == 0.0 and is_plain_eager(q, k, v) and not q.is_meta:
            out = _StepwiseAttention.apply(q, k, v, index, regions, num_heads, scale, factors, bias)
        else:
            out = _attend_maps(q, k, v, index, regions, num_heads, scale, factors, bias, dropout)
    return _map(out, q, regions)


def _prefers_dense(q: Tensor, routes: Tensor, regions: tuple[int, int]) -> bool:
    # The meta device has no speed; there, what matters is to count the products of the definition.
    if is_symbolic(q.shape[1]) or is_symbolic(q.shape[2]):
        return False
    tokens = q.shape[1] * q.shape[2] // (regions[0] * regions[1])
    share = routes.shape[2] / routes.shape[1]
    return share >= _DENSE_SHARE and tokens <= _DENSE_TOKENS and not q.is_meta


def _tokens_of_regions(x: Tensor, regions: tuple[int, int], valid: tuple[int, int] | None) -> Tensor:
    """[R]: how many tokens of each region lie in the valid map."""
    size = (x.shape[1], x.shape[2]) if valid is None else valid
    height, width = x.shape[1] // regions[0], x.shape[2] // regions[1]
    rows = (size[0] - torch.arange(regions[0], device=x.device) * height).clamp(0, height)
    columns = (size[1] - torch.arange(regions[1], device=x.device) * width).clamp(0, width)
    return (rows[:, None] * columns[None, :]).flatten()


def _region_means(x: Tensor, tokens: Tensor, regions: tuple[int, int], valid: tuple[int, int] | None) -> Tensor:
    """[B, H, W, C] -> [B, R, C], in float32 at least: the sum of a large region overflows float16."""
    B, H, W, C = x.shape
    ry, rx = regions
    if valid is not None:
        x = _zero_padding(x, valid)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    # One axis after the other: PyTorch reduces both at once with a slow stride.
    sums = x.reshape(B, ry, H // ry, W, C).sum(2, dtype=dtype).reshape(B, ry, rx, W // rx, C).sum(3).flatten(1, 2)
    return sums / tokens.clamp(min=1)[:, None]


def _zero_padding(x: Tensor, valid: tuple[int, int]) -> Tensor:
    """The map with everything beyond its valid height and width set to zero."""
    return F.pad(x[:, : valid[0], : valid[1]], (0, 0, 0, x.shape[2] - valid[1], 0, x.shape[1] - valid[0]))


def _padding_bias(x: Tensor, valid: tuple[int, int]) -> Tensor:
    """[h, w]: zero inside the valid map, minus infinity in its padding."""
    bias = torch.full((x.shape[1], x.shape[2]), float('-inf'), dtype=x.dtype, device=x.device)
    bias[: valid[0], : valid[1]] = 0.0
    return bias


def _rows(x: Tensor, regions: tuple[int, int], num_heads: int) -> Tensor:
    """[B, H, W, C] -> [B * R, n, N, D], contiguous: one row a region."""
    B, H, W, C = x.shape
    ry, rx = regions
    x = x.reshape(B, ry, H // ry, rx, W // rx, C).transpose(2, 3)
    return x.reshape(B * ry * rx, (H // ry) * (W // rx), num_heads, C // num_heads)


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    regions: tuple[int, int],
    num_heads: int,
    scale: float,
    valid: tuple[int, int] | None,
    dropout: float,
) -> Tensor:
    """Attention of all tokens to all tokens, where a mask leaves only the regions of the route."""
    B, R, _ = routes.shape
    mask = torch.full((B, R, R), float('-inf'), dtype=q.dtype, device=q.device).scatter(2, routes, 0.0)
    of_query = _region_of_token(q, regions)
    of_key = _region_of_token(k, regions)
    mask = mask.index_select(2, of_key)
    if valid is not None:
        mask = mask + _padding_bias(k, valid).flatten()
    mask = mask.index_select(1, of_query)[:, None]
    q_heads, k_heads, v_heads = _heads(q, num_heads), _heads(k, num_heads), _heads(v, num_heads)
    out = full_attention(q_heads, k_heads, v_heads, mask, scale, dropout)
    return out.transpose(1, 2).reshape(B, q.shape[1], q.shape[2], v.shape[3])


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """[B, H, W, C] -> [B, N, H * W, D], a view where the map is one."""
    return x.flatten(1, 2).unflatten(2, (num_heads, x.shape[3] // num_heads)).transpose(1, 2)


def _region_of_token(x: Tensor, regions: tuple[int, int]) -> Tensor:
    """[h * w]: the index of the region in which each token lies."""
    rows = torch.arange(x.shape[1], device=x.device) // (x.shape[1] // regions[0])
    columns = torch.arange(x.shape[2], device=x.device) // (x.shape[2] // regions[1])
    return (rows[:, None] * regions[1] + columns[None, :]).flatten()


def _map(rows: Tensor, like: Tensor, regions: tuple[int, int]) -> Tensor:
    """The way back from `_rows`, to a map of the height and width of another."""
    B, H, W, C = like.shape[0], like.shape[1], like.shape[2], rows.shape[2] * rows.shape[3]
    ry, rx = regions
    rows = rows.reshape(B, ry, rx, H // ry, W // rx, C)
    if is_symbolic(H) or is_symbolic(W):
        # A view would have the exporter ask whether a region is one token, which depends on the size.
        return torch.cat([torch.cat(row.unbind(1), 2) for row in rows.unbind(1)], 1)
    return rows.transpose(2, 3).reshape(B, H, W, C)


def _attend_maps(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    regions: tuple[int, int],
    num_heads: int,
    scale: float,
    factors: Tensor | None,
    bias: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """`_attend` on maps; its result are rows."""
    q, k, v = _rows(q, regions, num_heads), _rows(k, regions, num_heads), _rows(v, regions, num_heads)
    return _attend(q, k, v, index, scale, factors, bias, dropout)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    scale: float,
    factors: Tensor | None,
    bias: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of T query rows [T, n, N, D] to the key rows [S, m, N, D] that `index` [T, K] names for each."""
    return _attend_gathered(q, _gather(k, index), _gather(v, index), scale, factors, bias, dropout)


def _gather(x: Tensor, index: Tensor) -> Tensor:
    """[S, m, N, D] rows under `index` [T, K] -> [T, K, m, N, D]."""
    T, K = index.shape
    return x.flatten(1).index_select(0, index.flatten()).view(T, K, x.shape[1], x.shape[2], x.shape[3])


def _attend_gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    factors: Tensor | None,
    bias: Tensor | None,
    dropout: float = 0.0,
) -> Tensor:
    if factors is not None:
        k, v = k * factors[:, :, None, None, None], v * factors[:, :, None, None, None]
    k, v = k.flatten(1, 2).transpose(1, 2), v.flatten(1, 2).transpose(1, 2)
    return full_attention(q.transpose(1, 2), k, v, bias, scale, dropout).transpose(1, 2)


class _StepwiseAttention(torch.autograd.Function):
    """`_attend_maps` in steps that hold a bounded number of gathered keys and values, in both directions.

    Autograd alone would keep every gathered copy for the backward, K times the map and more. Here the maps alone stay,
    which often are views of one that others keep too.
    """

    @staticmethod
    def forward(ctx, q, k, v, index, regions, num_heads, scale, factors, bias):
        ctx.save_for_backward(q, k, v, index, factors, bias)
        ctx.settings = regions, num_heads, scale
        q, k, v = (_rows(x, regions, num_heads) for x in (q, k, v))
        out = q.new_empty(*q.shape[:3], v.shape[3])
        for part in _steps(k, v, index):
            out[part] = _attend(q[part], k, v, index[part], scale, _part(factors, part), _part(bias, part))
        return out

    @staticmethod
    def backward(ctx, grad):
        *maps, index, factors, bias = ctx.saved_tensors
        regions, num_heads, scale = ctx.settings
        if wants_autograd(grad):
            arguments = (*maps, index, *ctx.settings, factors, bias)
            return gradients_by_autograd(_attend_maps, arguments, ctx.needs_input_grad, grad)
        q, k, v = (_rows(x, regions, num_heads) for x in maps)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for part in _steps(k, v, index):
            q_step = q[part].detach().requires_grad_()
            k_step = _gather(k, index[part]).detach().requires_grad_()
            v_step = _gather(v, index[part]).detach().requires_grad_()
            with torch.enable_grad():
                out = _attend_gathered(q_step, k_step, v_step, scale, _part(factors, part), _part(bias, part))
            step_q, step_k, step_v = torch.autograd.grad(out, (q_step, k_step, v_step), grad[part])
            grad_q[part] = step_q
            rows = index[part].flatten()
            grad_k.flatten(1).index_add_(0, rows, step_k.flatten(2).flatten(0, 1))
            grad_v.flatten(1).index_add_(0, rows, step_v.flatten(2).flatten(0, 1))
        grads = (_map(rows, like, regions) for rows, like in zip((grad_q, grad_k, grad_v), maps, strict=True))
        return *grads, None, None, None, None, None, None


def _steps(k: Tensor, v: Tensor, index: Tensor) -> list[slice]:
    """Slices of the query rows whose gathered keys and values stay within the bound of a step."""
    row_bytes = index.shape[1] * (k[:1].nbytes + v[:1].nbytes)
    rows = max(1, _STEP_BYTES // max(1, row_bytes))
    return [slice(start, start + rows) for start in range(0, index.shape[0], rows)]


def _part(x: Tensor | None, part: slice) -> Tensor | None:
    return None if x is None else x[part]
