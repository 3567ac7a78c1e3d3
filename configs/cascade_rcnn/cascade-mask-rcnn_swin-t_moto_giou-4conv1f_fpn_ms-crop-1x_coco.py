# paper: box AP 48.7, mask AP 42.1
_base_ = './cascade-mask-rcnn_swin-t_giou-4conv1f_fpn_ms-crop-1x_coco.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        init_cfg=dict(checkpoint='work_dirs/swin-t_moto_8xb128-300e_in1k/epoch_300.pth')))
