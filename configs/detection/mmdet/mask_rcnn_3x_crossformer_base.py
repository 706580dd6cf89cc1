# CrossFormer-B with Mask R-CNN, 3x: box AP 49.8, mask AP 44.5 (github.com/cheerss/CrossFormer, detection; no file).
_base_ = 'mask_rcnn_3x_crossformer_small.py'
model = dict(backbone=dict(model='crossformer_base', drop_path_rate=0.3))
