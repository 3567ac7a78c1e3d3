# paper: box AP 43.7, mask AP 39.8
_base_ = [
    '../_base_/models/mask-rcnn.py', '../_base_/datasets/coco_instance_ms-crop.py',
    '../_base_/schedules/adamw_1x.py', '../_base_/mmdet_runtime.py'
]
model = dict(
    backbone=dict(
        type='mmtok.Swin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
            'swin_tiny_patch4_window7_224.pth')),
    neck=dict(in_channels=[96, 192, 384, 768]))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'relative_position_bias_table': dict(decay_mult=0.), 'norm': dict(decay_mult=0.)}))
