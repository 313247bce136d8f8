//! PullImage: one pull, and the three names it leaves.

use tare_proto::containerd::services::images::v1 as images;
use tare_proto::runtime::v1 as pb;

use super::catalog::PINNED;
use super::name;
use crate::cri::{Cri, namespace};
use crate::error::{Error, Result};
use crate::names::Labels;
use crate::registry::{Credentials, Options, Secret};
use crate::snapshot::OVERLAY;
use crate::transfer::{Names, Platform, Progress, Request, Unpack};

/// Says that an image came by CRI.
pub(super) const MANAGED: (&str, &str) = ("io.cri-containerd.image", "managed");

impl Cri {
    /// Pulls, and returns the image's id.
    ///
    /// # Errors
    /// A name that is none; the registry's, or the disk's.
    pub(super) async fn pull(&self, reference: &str, auth: Option<pb::AuthConfig>) -> Result<String> {
        let full = name::complete(reference)?;
        let labels = self.labels_of(&full);
        let request = Request {
            reference: full.clone(),
            names: Names { name: full.clone(), labels, ..Names::default() },
            platforms: vec![Platform::own()],
            unpacks: vec![Unpack { platform: Platform::own(), snapshotter: OVERLAY.to_owned() }],
            registry: Options {
                credentials: credentials(auth.unwrap_or_default(), &full)?,
                hosts: Some(self.config.registry.config_path.clone()).filter(|path| !path.as_os_str().is_empty()),
                ..Options::default()
            },
            ..Request::default()
        };
        let (_wanted, transfers) = self.parts.transfers.wanted();
        let pulled = transfers.pull(&namespace(), &request, &Progress::default()).await;
        let pulled = match pulled {
            Ok(mut pulled) => pulled.pop().ok_or_else(|| Error::Internal(format!("pulling {full} gave no image")))?,
            Err(error) => {
                self.parts.collector.after(false).await?; // what came before the failure
                return Err(error);
            }
        };
        self.told_of(&pulled.image, pulled.new);
        self.off_thread(move |cri| {
            let image = cri.find_image(&full)?;
            let image = image.ok_or_else(|| Error::NotFound(format!("image {full:?}, pulled a moment ago,")))?;
            let target = pulled.image.target.clone().unwrap_or_default();
            for also in [image.facts.id.clone(), name::by_digest(&full, &target.digest)?] {
                if also != full {
                    cri.name(images::Image { name: also, ..pulled.image.clone() })?;
                }
            }
            Ok(image.facts.id.clone())
        })
        .await
    }

    /// Gives an image one more name, whatever it stood for before.
    fn name(&self, image: images::Image) -> Result<()> {
        match self.parts.images.create(&namespace(), image.clone(), None) {
            Ok(made) => self.told_of(&made, true),
            Err(Error::AlreadyExists(_)) => {
                let labels = image.labels.keys().map(|key| format!("labels.{key}"));
                let paths: Vec<_> = labels.chain(["target".to_owned()]).collect();
                let changed = self.parts.images.update(&namespace(), &image, &paths, None)?;
                self.told_of(&changed, false);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// What we write on an image of this name.
    pub(super) fn labels_of(&self, name: &str) -> Labels {
        let pinned =
            self.config.pinned_images.iter().any(|pinned| name::complete(pinned).is_ok_and(|full| full == name));
        let all = [Some(MANAGED), pinned.then_some(PINNED)];
        all.into_iter().flatten().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    pub(super) fn told_of(&self, image: &images::Image, new: bool) {
        let (name, labels) = (image.name.clone(), image.labels.clone());
        if new {
            self.parts.tell(&namespace(), "/images/create", &images::ImageCreate { name, labels });
        } else {
            self.parts.tell(&namespace(), "/images/update", &images::ImageUpdate { name, labels });
        }
    }
}

/// What the kubelet knows of us; only one of the forms is in use at a time. What is meant for another registry is not sent.
fn credentials(auth: pb::AuthConfig, reference: &str) -> Result<Credentials> {
    if !auth.server_address.is_empty() && host(&auth.server_address) != host(reference) {
        return Ok(Credentials::None);
    }
    let secret = if !auth.identity_token.is_empty() {
        Secret::Refresh(auth.identity_token)
    } else if !auth.registry_token.is_empty() {
        Secret::Header(format!("Bearer {}", auth.registry_token))
    } else if !auth.username.is_empty() {
        Secret::Basic { username: auth.username, password: auth.password }
    } else if !auth.auth.is_empty() {
        Secret::from_docker(&auth.auth)
            .ok_or_else(|| Error::InvalidArgument("auth.auth is not base64 of a name and a password".into()))?
    } else {
        return Ok(Credentials::None);
    };
    Ok(Credentials::Given(secret))
}

/// The registry that an address or a reference names; Docker's has several names.
fn host(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_meant_for_another_registry_is_not_sent() {
        let given = |server_address: &str| {
            let auth = pb::AuthConfig {
                username: "u".into(),
                password: "p".into(),
                server_address: server_address.into(),
                ..pb::AuthConfig::default()
            };
            matches!(credentials(auth, "docker.io/library/a:1").unwrap(), Credentials::Given(Secret::Basic { .. }))
        };
        for (server, sent) in
            [("", true), ("https://index.docker.io/v1/", true), ("docker.io", true), ("https://quay.io", false)]
        {
            assert_eq!(given(server), sent, "{server}");
        }
        let bad = pb::AuthConfig { auth: "?".into(), ..pb::AuthConfig::default() };
        assert!(credentials(bad, "docker.io/library/a:1").is_err());
        assert!(matches!(credentials(pb::AuthConfig::default(), "a/b:1"), Ok(Credentials::None)));
    }
}
