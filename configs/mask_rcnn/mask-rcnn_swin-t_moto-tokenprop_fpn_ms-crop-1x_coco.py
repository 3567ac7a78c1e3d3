# paper: box AP 44.6, mask AP 40.4
_base_ = './mask-rcnn_swin-t_fpn_ms-crop-1x_coco.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=dict(checkpoint='work_dirs/swin-t_moto-tokenprop_8xb128-300e_in1k/epoch_300.pth')))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
