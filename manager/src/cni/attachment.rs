//! What is attached to a network: a pod, its network namespace, what it asks of the plugins.

use std::fmt;
use std::path::PathBuf;

use super::capability::Capabilities;
use crate::error::{Error, Result};

/// A pod that gets networks. Having one proves that its id, and every argument, is fit for a plugin's environment.
#[derive(Clone, Debug)]
pub struct Attachment {
    id: String,
    /// The pinned namespace; none is left when a pod is removed after a reboot.
    pub netns: Option<PathBuf>,
    args: Vec<(String, String)>,
    pub capabilities: Capabilities,
}

impl Attachment {
    /// `id` is the sandbox's.
    ///
    /// # Errors
    /// `InvalidArgument`: the id is not letters, digits, `_`, `.` and `-` behind a letter or digit.
    pub fn new(id: &str, netns: Option<PathBuf>) -> Result<Attachment> {
        name("container id", id)?;
        Ok(Attachment { id: id.to_owned(), netns, args: Vec::new(), capabilities: Capabilities::default() })
    }

    /// Adds an argument for `CNI_ARGS`: `K8S_POD_NAME` and such.
    ///
    /// # Errors
    /// `InvalidArgument`: `;` or `=` would make another argument of it.
    pub fn arg(mut self, key: &str, value: &str) -> Result<Attachment> {
        for text in [key, value] {
            if text.contains([';', '=']) || text.chars().any(char::is_control) {
                return Err(Error::InvalidArgument(format!("CNI argument {key}={value:?} must not hold ; or =")));
            }
        }
        self.args.push((key.to_owned(), value.to_owned()));
        Ok(self)
    }

    /// With the arguments that plugins for Kubernetes read.
    ///
    /// # Errors
    /// `InvalidArgument`: as for [`Attachment::arg`].
    pub fn of_pod(self, namespace: &str, name: &str, uid: &str) -> Result<Attachment> {
        let id = self.id.clone();
        self.arg("IgnoreUnknown", "1")?
            .arg("K8S_POD_NAMESPACE", namespace)?
            .arg("K8S_POD_NAME", name)?
            .arg("K8S_POD_INFRA_CONTAINER_ID", &id)?
            .arg("K8S_POD_UID", uid)
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn args(&self) -> &[(String, String)] {
        &self.args
    }

    /// As it was when it was added.
    pub(super) fn again(&self, args: Vec<(String, String)>) -> Attachment {
        Attachment { args, ..self.clone() }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)
    }
}

/// Checks a container's or network's name, which becomes part of paths.
///
/// Source: SPEC.md, "Network configuration format", "CNI_CONTAINERID".
pub(super) fn name(what: &str, text: &str) -> Result<()> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    if first && rest && text.len() <= 255 {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("{what} {text:.100?} must be letters, digits, _, . and -")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_arguments_are_those_that_plugins_for_kubernetes_read() {
        let pod = Attachment::new("p1", None).unwrap().of_pod("ns", "web", "u1").unwrap();
        let args: Vec<String> = pod.args().iter().map(|(key, value)| format!("{key}={value}")).collect();
        let expect =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=p1;K8S_POD_UID=u1";
        assert_eq!(args.join(";"), expect);
    }

    #[test]
    fn an_argument_cannot_become_two() {
        for value in ["a;K8S_POD_UID=x", "a=b", "a\n"] {
            let pod = Attachment::new("p1", None).unwrap();
            assert!(matches!(pod.of_pod("ns", value, "u"), Err(Error::InvalidArgument(_))), "{value:?}");
        }
        for id in ["", "../x", "-a", "a/b", "a b"] {
            assert!(Attachment::new(id, None).is_err(), "{id:?}");
        }
    }
}
