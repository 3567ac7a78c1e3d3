# mmseg's recipe for OCRNet, at the paper's 150k iterations
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=150000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=150000, val_interval=15000)
val_cfg = dict(type='mmtok.ValLoop')
test_cfg = dict(type='mmtok.TestLoop')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmtok.CheckpointHook', by_epoch=False, interval=15000),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'))
