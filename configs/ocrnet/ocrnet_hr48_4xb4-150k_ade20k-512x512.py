# paper: mIoU 45.7
_base_ = [
    '../_base_/models/ocrnet_hr48.py', '../_base_/datasets/ade20k_512x512.py', '../_base_/schedules/sgd_150k.py',
    '../_base_/mmseg_runtime.py'
]
train_dataloader = dict(batch_size=4)
