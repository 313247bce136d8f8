//! Images from elsewhere into our stores.

mod document;
mod pull;

pub use document::{Descriptor as Described, Document, Platform, chain_ids, diff_ids};
pub use pull::{Progress, Pulled, Puller, Request};
