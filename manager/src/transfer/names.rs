//! What an image is called once it is here, and which names stand for it.

use std::collections::HashMap;
use std::time::SystemTime;

use tare_proto::containerd::services::images::v1::Image;
use tare_proto::containerd::types::Descriptor as Target;

use super::Transfers;
use super::document::Descriptor;
use crate::error::{Error, Result};
use crate::names::{Labels, Namespace, check_labels};
use crate::store::kind;

/// The whole name, in an archive's index.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// The tag alone, or what an archive's maker put there. Source: image-spec annotations.md.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A further name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extra {
    pub name: String,
    /// A tag or digest is added to it.
    pub is_prefix: bool,
    /// A whole name in an archive counts even if it begins in another way.
    pub allow_overwrite: bool,
    pub add_digest: bool,
    /// No digest is added where there is a tag.
    pub skip_named_digest: bool,
}

/// How an image, or each image of an archive, is named.
#[derive(Debug, Clone, Default)]
pub struct Names {
    pub name: String,
    pub extra: Vec<Extra>,
    pub labels: Labels,
}

/// A name that stands for something now.
#[derive(Debug, Clone)]
pub struct Stored {
    pub image: Image,
    pub new: bool,
}

impl Names {
    /// Of what was asked for by name.
    pub fn of_target(&self, digest: &str) -> Vec<String> {
        let own = Some(self.name.clone()).filter(|name| !name.is_empty());
        let extra = self.extra.iter().filter(|extra| !extra.is_prefix);
        let extra = extra.map(|extra| match extra.add_digest {
            true => format!("{}@{digest}", extra.name),
            false => extra.name.clone(),
        });
        own.into_iter().chain(extra).collect()
    }

    /// Of an image that an archive brought along.
    pub fn of_member(&self, annotations: &HashMap<String, String>, digest: &str) -> Vec<String> {
        let mut names = Vec::new();
        for extra in self.extra.iter().filter(|extra| extra.is_prefix) {
            let with_digest = format!("{}@{digest}", extra.name);
            match extra.tagged(annotations) {
                Some(name) => {
                    names.push(name);
                    if extra.add_digest && !extra.skip_named_digest {
                        names.push(with_digest);
                    }
                }
                None if extra.add_digest => names.push(with_digest),
                None => {}
            }
        }
        names
    }
}

impl Extra {
    fn tagged(&self, annotations: &HashMap<String, String>) -> Option<String> {
        if let Some(whole) = annotations.get(IMAGE_NAME).filter(|name| !name.is_empty()) {
            return Some(whole.clone()).filter(|whole| self.translated(whole).as_ref() == Some(whole));
        }
        self.translated(annotations.get(REF_NAME).filter(|name| !name.is_empty())?)
    }

    /// A tag becomes a name; a name stays one, if it may.
    fn translated(&self, text: &str) -> Option<String> {
        if self.name.is_empty() {
            return None;
        }
        if !text.contains(['/', ':', '@']) {
            return Some(format!("{}:{text}", self.name));
        }
        let begins =
            text.strip_prefix(&self.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
        (self.allow_overwrite || begins).then(|| text.to_owned())
    }
}

impl Transfers {
    /// Makes names stand for a target, whatever they stood for before.
    pub(super) fn store_names(
        &self,
        namespace: &Namespace,
        names: Vec<String>,
        labels: &Labels,
        target: &Descriptor,
    ) -> Result<Vec<Stored>> {
        check_labels(labels)?;
        self.store.change(|rows| {
            let mut stored = Vec::new();
            for name in names {
                if name.contains('\0') {
                    return Err(Error::InvalidArgument("image name must not contain a NUL".into()));
                }
                let before: Option<Image> = rows.get(kind::IMAGE, namespace, &name)?;
                let now = Some(SystemTime::now().into());
                let image = Image {
                    name: name.clone(),
                    labels: labels.clone(),
                    target: Some(Target::from(target)),
                    created_at: before.as_ref().map_or(now, |before| before.created_at),
                    updated_at: now,
                };
                rows.put(kind::IMAGE, namespace, &name, &image)?;
                stored.push(Stored { image, new: before.is_none() });
            }
            Ok(stored)
        })
    }

    pub(super) fn image(&self, namespace: &Namespace, name: &str) -> Result<Image> {
        let image = self.store.get(kind::IMAGE, namespace, name)?;
        image.ok_or_else(|| Error::NotFound(format!("image {name:?}")))
    }

    /// Makes further names stand for what a name stands for.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` no new name.
    pub fn tag(&self, namespace: &Namespace, name: &str, names: &Names) -> Result<Vec<Stored>> {
        let target = Descriptor::from(&self.image(namespace, name)?.target.unwrap_or_default());
        let new = names.of_target(&target.digest);
        if new.is_empty() {
            return Err(Error::InvalidArgument("an image needs a name".into()));
        }
        self.store_names(namespace, new, &names.labels, &target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_s_names_are_taken_as_far_as_they_may() {
        let annotated = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
        let names = |extra: Extra| Names { extra: vec![extra], ..Names::default() };
        let only = Extra { name: "a.example/x".into(), is_prefix: true, ..Extra::default() };
        let any = Extra { allow_overwrite: true, ..only.clone() };
        let digests = Extra { add_digest: true, ..only.clone() };
        let either = Extra { skip_named_digest: true, ..digests.clone() };
        for (extra, annotations, expected) in [
            (&only, annotated(REF_NAME, "1"), &["a.example/x:1"][..]),
            (&only, annotated(IMAGE_NAME, "a.example/x:2"), &["a.example/x:2"]),
            (&only, annotated(IMAGE_NAME, "a.example/xy:2"), &[]),
            (&only, annotated(IMAGE_NAME, "b.example/y:2"), &[]),
            (&any, annotated(IMAGE_NAME, "b.example/y:2"), &["b.example/y:2"]),
            (&any, HashMap::new(), &[]),
            (&digests, annotated(REF_NAME, "1"), &["a.example/x:1", "a.example/x@sha256:d"]),
            (&either, annotated(REF_NAME, "1"), &["a.example/x:1"]),
            (&either, HashMap::new(), &["a.example/x@sha256:d"]),
        ] {
            assert_eq!(names(extra.clone()).of_member(&annotations, "sha256:d"), expected, "{extra:?} {annotations:?}");
        }
    }
}
