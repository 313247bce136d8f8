//! Images from elsewhere into our stores.

mod document;
mod pull;

pub use document::{Document, Platform};
pub use pull::{Progress, Pulled, Puller, Request};
