# paper: box AP 44.2, mask AP 40.0
_base_ = './mask-rcnn_swin-t_fpn_ms-crop-1x_coco.py'
model = dict(
    backbone=dict(
        token_prop=dict(),
        init_cfg=dict(checkpoint='work_dirs/swin-t_tokenprop_8xb128-300e_in1k/epoch_300.pth')))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
