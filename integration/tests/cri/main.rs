//! CRI over its socket, as a kubelet speaks it: with our own client, whose every promise is one that kubelets, `crictl` and
//! the field's validation count on.

mod checkpoint;
mod container;
mod device;
mod image;
mod inspect;
mod kubelet;
mod many;
mod network;
mod node;
mod pod;
mod restart;
mod security;
mod validation;
