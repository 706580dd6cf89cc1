"""mmdet's detectors on backbones of attnzoo and timm.

    python -m attnzoo.mmdet train mask_rcnn_1x_biformer_small --data-root DIR

Importing this makes mmdet ready for use: it puts a stand-in where mmcv's compiled code is missing, and registers
`ZooBackbone`. In a config, `custom_imports=dict(imports=['attnzoo.mmdet'])` does so.
"""

if __name__ == '__main__':
    from attnzoo.train.mmdet.launcher import main

    main()
else:
    from attnzoo.train.mmdet.installation import prepare

    prepare()

    from attnzoo.train.mmdet.backbone import ZooBackbone
    from attnzoo.train.mmdet.runner import PlainCheckpoint, ZooRunner

    __all__ = ['PlainCheckpoint', 'ZooBackbone', 'ZooRunner']
