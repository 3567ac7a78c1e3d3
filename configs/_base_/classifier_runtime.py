_base_ = './default_runtime.py'
default_scope = 'mmengine'
randomness = dict(seed=0, diff_rank_seed=True)  # other dropout and Mixup on each GPU, as in timm
visualizer = dict(type='Visualizer', vis_backends={{_base_.vis_backends}}, name='visualizer')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='mmtok.CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='mmtok.EpochHook'),
    results=dict(type='mmtok.ResultsHook'))
val_cfg = dict(type='mmtok.ClassifierValLoop')
test_cfg = dict(type='mmtok.ClassifierTestLoop')
val_evaluator = dict(type='mmtok.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
