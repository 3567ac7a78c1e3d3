# 8 images of COCO, at 384x384 pixels at most and not augmented: a detector should memorise them. COCO_ROOT holds the 8.
_base_ = [
    '../../configs/_base_/datasets/coco_instance.py', '../../configs/_base_/schedules/adamw_1x.py',
    '../../configs/_base_/mmdet_runtime.py'
]
epochs = 10  # of 50 times the 8 images
load, resize = dict(type='LoadImageFromFile'), dict(type='Resize', scale=(384, 384), keep_ratio=True)
annotate = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=50,
        dataset=dict(
            type='CocoDataset',
            data_root={{_base_.data_root}},
            ann_file='annotations/instances_val2017.json',
            data_prefix=dict(img='val2017/'),
            pipeline=[load, annotate, resize, dict(type='PackDetInputs')])))
pack = dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=[load, resize, annotate, pack]))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=5e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=epochs, end=epochs, by_epoch=True, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(checkpoint=dict(interval=epochs))
randomness = dict(seed=0)
