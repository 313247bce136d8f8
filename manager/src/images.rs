//! Images: a name, and the descriptor of the manifest or index it stands for.

use std::time::SystemTime;

use tare_proto::containerd::services::images::v1::Image;
use tare_proto::containerd::types::Descriptor;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::names::{Digest, Namespace, check_labels, update_labels};
use crate::store::{Store, kind};

#[derive(Clone)]
pub struct Images {
    store: Store,
}

impl Images {
    pub fn new(store: Store) -> Images {
        Images { store }
    }

    /// # Errors
    /// `NotFound`.
    pub fn get(&self, namespace: &Namespace, name: &str) -> Result<Image> {
        self.store.get(kind::IMAGE, namespace, name)?.ok_or_else(|| missing(name))
    }

    /// # Errors
    /// A filter cannot be read.
    pub fn list(&self, namespace: &Namespace, filters: &[String]) -> Result<Vec<Image>> {
        let filter = Filter::parse(filters)?;
        let images = self.store.list::<Image>(kind::IMAGE, namespace)?.into_iter().map(|(_, image)| image);
        Ok(images.filter(|image| filter.matches(|path| field(image, path))).collect())
    }

    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` without a name or a target that is one.
    pub fn create(&self, namespace: &Namespace, image: Image, at: Option<SystemTime>) -> Result<Image> {
        check(&image)?;
        let now = Some(at.unwrap_or_else(SystemTime::now).into());
        let image = Image { created_at: now, updated_at: now, ..image };
        self.store.change(|rows| {
            if rows.get::<Image>(kind::IMAGE, namespace, &image.name)?.is_some() {
                return Err(Error::AlreadyExists(format!("image {:?}", image.name)));
            }
            rows.put(kind::IMAGE, namespace, &image.name, &image)
        })?;
        Ok(image)
    }

    /// Changes what the mask names, or without one all that can be changed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot be changed.
    pub fn update(
        &self,
        namespace: &Namespace,
        given: &Image,
        mask: &[String],
        at: Option<SystemTime>,
    ) -> Result<Image> {
        if given.name.is_empty() {
            return Err(Error::InvalidArgument("image name is required for update".into()));
        }
        self.store.change(|rows| {
            let mut image: Image =
                rows.get(kind::IMAGE, namespace, &given.name)?.ok_or_else(|| missing(&given.name))?;
            apply(&mut image, given, mask)?;
            check(&image)?;
            image.updated_at = Some(at.unwrap_or_else(SystemTime::now).into());
            rows.put(kind::IMAGE, namespace, &image.name, &image)?;
            Ok(image)
        })
    }

    /// Removes the name; if a target is given, only while the name still stands for it.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn delete(&self, namespace: &Namespace, name: &str, target: Option<&Descriptor>) -> Result<()> {
        self.store.change(|rows| {
            let image: Image = rows.get(kind::IMAGE, namespace, name)?.ok_or_else(|| missing(name))?;
            let now = image.target.unwrap_or_default();
            if let Some(target) = target.filter(|target| !target.digest.is_empty())
                && (target.digest != now.digest || target.size != now.size)
            {
                return Err(Error::NotFound(format!("image {name:?} with target {}", target.digest)));
            }
            rows.remove(kind::IMAGE, namespace.as_str(), name).map(|_| ())
        })
    }
}

fn missing(name: &str) -> Error {
    Error::NotFound(format!("image {name:?}"))
}

fn check(image: &Image) -> Result<()> {
    if image.name.is_empty() {
        return Err(Error::InvalidArgument("image name must not be empty".into()));
    }
    if image.name.contains('\0') {
        return Err(Error::InvalidArgument("image name must not contain a NUL".into()));
    }
    check_labels(&image.labels)?;
    let Some(target) = &image.target else {
        return Err(Error::InvalidArgument(format!("image {:?} must have a target", image.name)));
    };
    Digest::parse(&target.digest)?;
    if target.size < 0 {
        return Err(Error::InvalidArgument(format!("image {:?}: target.size {} is negative", image.name, target.size)));
    }
    Ok(())
}

fn apply(image: &mut Image, given: &Image, mask: &[String]) -> Result<()> {
    if mask.is_empty() {
        image.target.clone_from(&given.target);
        return update_labels(&mut image.labels, &given.labels, &[]);
    }
    for path in mask {
        let target = given.target.clone().unwrap_or_default();
        match path.as_str() {
            "target" => image.target.clone_from(&given.target),
            "annotations" => image.target.get_or_insert_default().annotations = target.annotations,
            path if path.starts_with("annotations.") => {
                let key = &path["annotations.".len()..];
                let annotations = &mut image.target.get_or_insert_default().annotations;
                match target.annotations.get(key).filter(|value| !value.is_empty()) {
                    Some(value) => annotations.insert(key.to_owned(), value.clone()),
                    None => annotations.remove(key),
                };
            }
            _ => update_labels(&mut image.labels, &given.labels, std::slice::from_ref(path))?,
        }
    }
    Ok(())
}

fn field(image: &Image, path: &[String]) -> Option<String> {
    let target = image.target.as_ref();
    match path {
        [first] if first == "name" => Some(image.name.clone()),
        [first, rest @ ..] if first == "labels" => image.labels.get(&rest.join(".")).cloned(),
        [first, rest @ ..] if first == "annotations" => target?.annotations.get(&rest.join(".")).cloned(),
        [first, second] if first == "target" && second == "digest" => Some(target?.digest.clone()),
        [first, second] if first == "target" && second == "mediatype" => Some(target?.media_type.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(name: &str, content: &str) -> Image {
        let digest = Digest::of(content.as_bytes()).to_string();
        let target = Descriptor { media_type: "m".into(), digest, size: 1, ..Descriptor::default() };
        Image { name: name.into(), target: Some(target), ..Image::default() }
    }

    fn images() -> (tempfile::TempDir, Images, Namespace) {
        let dir = tempfile::tempdir().unwrap();
        let images = Images::new(Store::open(&dir.path().join("db")).unwrap());
        (dir, images, Namespace::parse("n").unwrap())
    }

    #[test]
    fn a_name_is_moved_by_update_and_removed_only_while_it_stands_for_the_target() {
        let (_dir, images, ns) = images();
        let old = images.create(&ns, image("a:1", "old"), None).unwrap();
        assert!(matches!(images.create(&ns, image("a:1", "new"), None), Err(Error::AlreadyExists(_))));
        let mut moved = image("a:1", "new");
        moved.labels.insert("k.l".into(), "v".into());
        images.update(&ns, &moved, &["target".into(), "labels.k.l".into()], None).unwrap();
        assert!(matches!(images.delete(&ns, "a:1", old.target.as_ref()), Err(Error::NotFound(_))));
        assert_eq!(images.get(&ns, "a:1").unwrap().labels["k.l"], "v");
        for (filter, count) in [("name==\"a:1\"", 1), ("labels.\"k.l\"==v", 1), ("target.mediatype==x", 0)] {
            assert_eq!(images.list(&ns, &[filter.into()]).unwrap().len(), count, "{filter}");
        }
        images.delete(&ns, "a:1", moved.target.as_ref()).unwrap();
        assert!(matches!(images.get(&ns, "a:1"), Err(Error::NotFound(_))));
    }

    #[test]
    fn what_is_no_image_is_refused_and_nothing_is_written() {
        let (_dir, images, ns) = images();
        for bad in [
            Image::default(),
            Image { target: None, ..image("a", "x") },
            Image { target: Some(Descriptor { digest: "x".into(), ..Descriptor::default() }), ..image("a", "x") },
        ] {
            assert!(matches!(images.create(&ns, bad, None), Err(Error::InvalidArgument(_))));
        }
        images.create(&ns, image("a", "x"), None).unwrap();
        assert!(matches!(images.update(&ns, &image("a", "y"), &["name".into()], None), Err(Error::InvalidArgument(_))));
        assert_eq!(images.list(&ns, &[]).unwrap(), vec![images.get(&ns, "a").unwrap()]);
    }
}
