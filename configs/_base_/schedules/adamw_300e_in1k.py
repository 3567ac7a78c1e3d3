# DeiT's recipe, 1024 images a step
epochs = 300
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='mmtok.OptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    paramwise_cfg=dict(
        flat_decay_mult=0.,  # biases and norms
        custom_keys={
            'pos_embed': dict(decay_mult=0.),
            'cls_token': dict(decay_mult=0.),
            'relative_position_bias_table': dict(decay_mult=0.),
            'moto': dict(decay_mult=0.),  # layout filters, beta, alpha, gate
        }))
param_scheduler = dict(type='mmtok.CosineLR', epochs=epochs, warmup=5, warmup_lr=1e-6, min_lr=1e-5)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
auto_scale_lr = dict(base_batch_size=1024)
