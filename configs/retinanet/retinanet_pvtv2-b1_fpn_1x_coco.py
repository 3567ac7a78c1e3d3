# paper: box AP 41.2
_base_ = [
    '../_base_/models/retinanet.py', '../_base_/datasets/coco_detection.py', '../_base_/schedules/adamw_1x.py',
    '../_base_/mmdet_runtime.py', '../_base_/coco_tta.py'
]
model = dict(
    backbone=dict(
        type='mmtok.PVTv2',
        arch='b1',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained', checkpoint='https://github.com/whai362/PVT/releases/download/v2/pvt_v2_b1.pth')),
    neck=dict(in_channels=[64, 128, 320, 512]))
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
