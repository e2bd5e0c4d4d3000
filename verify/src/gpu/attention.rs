use std::sync::Arc;
use super::{Device, Tensor};
use crate::ops::{Attention, Sequences};
pub(super) fn attend(_: &Arc<Device>, _: &Tensor, _: &Tensor, _: &Tensor, _: &Attention, _: &Sequences) -> Tensor { panic!() }
