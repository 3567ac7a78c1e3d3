# paper: box AP 48.6, mask AP 41.9
_base_ = './cascade-mask-rcnn_swin-t_giou-4conv1f_fpn_ms-crop-1x_coco.py'
model = dict(
    backbone=dict(
        token_prop=dict(),
        init_cfg=dict(checkpoint='work_dirs/swin-t_tokenprop_8xb128-300e_in1k/epoch_300.pth')))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
