# CrossFormer-B with RetinaNet, 1x: box AP 46.2 (github.com/cheerss/CrossFormer, detection).
_base_ = 'retinanet_1x_crossformer_small.py'
model = dict(backbone=dict(model='crossformer_base', drop_path_rate=0.3))
