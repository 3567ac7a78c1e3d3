# What all configs share; mmseg_runtime.py, mmdet_runtime.py and classifier_runtime.py add what their tools need
runner_type = 'mmtok.Runner'  # looks at the whole config first: what cannot work ends in one sentence
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
log_level = 'INFO'
load_from = None
resume = False
