# A PVTv2 of half of b0's depth, a neck of 64 channels and heads of two convolutions
_base_ = ['../../configs/_base_/models/retinanet.py', './overfit_coco.py']
norm_cfg = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(
        type='mmtok.PVTv2',
        arch=dict(embed_dims=(32, 64, 160, 256), depths=(1, 1, 1, 1), mlp_ratios=(4, 4, 4, 4)),
        drop_path_rate=0.0,
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=None),
    neck=dict(in_channels=[32, 64, 160, 256], out_channels=64, norm_cfg=norm_cfg),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2, norm_cfg=norm_cfg))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
