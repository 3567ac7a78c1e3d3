_base_ = './default_runtime.py'
default_scope = 'mmdet'
env_cfg = dict(cudnn_benchmark=False)  # the sizes of batches change
visualizer = dict(type='DetLocalVisualizer', vis_backends={{_base_.vis_backends}}, name='visualizer')
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmtok.CheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
val_cfg = dict(type='mmtok.ValLoop')
test_cfg = dict(type='mmtok.TestLoop')
