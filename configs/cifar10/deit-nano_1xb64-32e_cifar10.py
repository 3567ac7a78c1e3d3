# A DeiT that 2 CPU cores train in under 40 minutes; `model.backbone.arch.embed_dims=128 ...depth=6` makes it larger
_base_ = ['../_base_/datasets/cifar10.py', '../_base_/classifier_runtime.py', '../_base_/schedules/adamw_300e_in1k.py']
epochs = 32
model = dict(
    type='mmtok.ImageClassifier',
    num_classes=10,
    backbone=dict(
        type='mmtok.DeiT',
        arch=dict(embed_dims=64, depth=4, num_heads=2),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.0,
        mask_padding=False))
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = dict(epochs=epochs, warmup=1, by_epoch=True, convert_to_iter_based=True)
train_cfg = dict(max_epochs=epochs)
auto_scale_lr = dict(base_batch_size=64)
