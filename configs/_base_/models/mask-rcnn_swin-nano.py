# A Mask R-CNN that 2 CPU cores can train: Swin of width 48 and depth 2-2-2-2, a neck of 64 channels, small heads,
# 64 regions an image. Users set the numbers of classes.
_base_ = './mask-rcnn.py'
width = 64
model = dict(
    backbone=dict(
        type='mmtok.Swin',
        arch=dict(embed_dims=48, depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16)),
        drop_path_rate=0.0,
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=None),
    neck=dict(in_channels=[48, 96, 192, 384], out_channels=width, norm_cfg=dict(type='GN', num_groups=8)),
    rpn_head=dict(in_channels=width, feat_channels=width),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(in_channels=width, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width)),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
