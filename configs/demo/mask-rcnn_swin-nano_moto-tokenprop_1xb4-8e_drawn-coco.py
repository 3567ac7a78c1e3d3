# What `make demo-det` trains: MoTo and TokenProp on drawn objects, in minutes on 2 CPU cores
_base_ = [
    '../_base_/models/mask-rcnn_swin-nano.py', '../_base_/datasets/drawn_coco.py', '../_base_/schedules/adamw_1x.py',
    '../_base_/mmdet_runtime.py'
]
epochs = 8
model = dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)))
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=epochs, end=epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))
randomness = dict(seed=0)
