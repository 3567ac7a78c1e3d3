# paper: top-1 81.9
_base_ = [
    '../_base_/models/classifier_in1k.py', '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/adamw_300e_in1k.py', '../_base_/classifier_runtime.py'
]
model = dict(backbone=dict(type='mmtok.T2TViT', arch='19'))
# The authors train 300 epochs and 10 more at the lowest learning rate, 512 images a step
epochs = 310
train_dataloader = dict(batch_size=64, dataset=dict(transform=dict(interpolation='random')))
val_dataloader = dict(dataset=dict(transform=dict(crop_pct=0.9)))
test_dataloader = val_dataloader
param_scheduler = dict(warmup=10)
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=512)
optim_wrapper = dict(optimizer=dict(lr=5e-4, weight_decay=0.065))
default_hooks = dict(ema=dict(type='mmtok.EMAHook', momentum=0.00004, update_buffers=True))
