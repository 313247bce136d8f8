//! Hooks.

use super::{Error, refused};
use crate::spec;

pub fn check(hooks: &spec::Hooks) -> Result<(), Error> {
    for (list, hooks) in [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ] {
        for (index, hook) in hooks.iter().enumerate() {
            if !hook.path.starts_with('/') {
                return refused(
                    format!("hooks.{list}[{index}].path"),
                    format!("{:?} is not an absolute path", hook.path),
                );
            }
            if hook.timeout.is_some_and(|seconds| seconds <= 0) {
                return refused(format!("hooks.{list}[{index}].timeout"), "is not above zero");
            }
        }
    }
    Ok(())
}
