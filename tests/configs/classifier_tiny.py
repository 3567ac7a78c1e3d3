# A classifier as small as it gets with all that a training keeps: MoTo, TokenProp, drop path, averages, Mixup.
_base_ = '../../configs/cifar10/deit-nano_1xb64-32e_cifar10.py'
epochs = 4
model = dict(
    num_classes=4,
    label_smoothing=0.1,
    data_preprocessor=dict(type='mmtok.ImagePreprocessor', erase=dict(), mixup=dict(mixup_alpha=0.2)),
    backbone=dict(
        arch=dict(embed_dims=32, depth=2, num_heads=2),
        patch_size=8,
        drop_path_rate=0.2,
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(output_scale=16)))
train_dataloader = dict(batch_size=8, num_workers=1)
val_dataloader = dict(batch_size=5)
test_dataloader = dict(batch_size=5)
param_scheduler = dict(epochs=epochs)
train_cfg = dict(max_epochs=epochs)
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(interval=1, max_keep_ckpts=-1),
    ema=dict(type='mmtok.EMAHook', momentum=0.1, update_buffers=True))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
