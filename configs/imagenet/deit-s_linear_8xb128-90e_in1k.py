# No row of the paper, whose 68.1 probes a trunk of MoCo v3. A frozen trunk, and MoCo v3's recipe for its head
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
epochs = 90
model = dict(
    label_smoothing=0.0,
    data_preprocessor=dict(erase=None, mixup=None),
    backbone=dict(
        type='mmtok.DeiT',
        arch='small',
        drop_path_rate=0.0,
        frozen_stages=12,
        init_cfg=dict(type='Pretrained', checkpoint='work_dirs/deit-s_8xb128-300e_in1k/epoch_300.pth')))
train_dataloader = dict(dataset=dict(transform=dict(auto_augment=None, color_jitter=None)))
optim_wrapper = dict(
    _delete_=True, type='OptimWrapper', optimizer=dict(type='SGD', lr=12.0, momentum=0.9, weight_decay=0.0))
param_scheduler = dict(epochs=epochs, warmup=0, min_lr=0.0)
train_cfg = dict(max_epochs=epochs)
