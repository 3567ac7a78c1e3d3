# mmdet's 1x with AdamW: 12 epochs, 16 images a step; a model adds its trunk's learning rate and decay
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmtok.OptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={'moto': dict(decay_mult=0.)}))  # layout filters, beta, alpha, gate
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=16)
