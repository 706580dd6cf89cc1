# CrossFormer-B with Mask R-CNN, 1x: box AP 47.2, mask AP 42.7 (github.com/cheerss/CrossFormer, detection).
_base_ = 'mask_rcnn_1x_crossformer_small.py'
model = dict(backbone=dict(model='crossformer_base', drop_path_rate=0.3))
