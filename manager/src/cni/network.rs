//! The verbs: what happens to a pod, network by network and plugin by plugin.
//!
//! Source: SPEC.md, "Section 3: Execution of network configurations"; containernetworking/cni libcni.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::RwLock;

use super::attachment::Attachment;
use super::cache::{Cache, Entry};
use super::firewall;
use super::list::{self, List, Plugin, Version};
use super::orphan;
use super::plugin::{self, At, Verb};
use super::result::{self, PodNetwork};
use super::settings::Settings;
use crate::error::{Error, Result};

/// What a plugin that nobody waits for any more is given.
const ORPHANS: Duration = Duration::from_secs(10);

/// The node's networks for pods. Clones share them.
#[derive(Clone)]
pub struct Network {
    settings: Arc<Settings>,
    cache: Cache,
    /// Written by the collector: nothing may be added while plugins throw away what they do not find in its list.
    collecting: Arc<RwLock<()>>,
    built_in_told: Arc<AtomicBool>,
}

impl Network {
    /// `cache` must outlive a reboot, as the plugins' own reservations do.
    pub fn new(settings: Settings, cache: &Path) -> Network {
        Network {
            settings: Arc::new(settings),
            cache: Cache::at(cache),
            collecting: Arc::default(),
            built_in_told: Arc::default(),
        }
    }

    /// Attaches a pod to every network, `eth0` first. If one fails nothing is left.
    ///
    /// # Errors
    /// No network is configured, a plugin is missing or fails: the sentence names the network and the plugin.
    pub async fn add(&self, pod: &Attachment) -> Result<PodNetwork> {
        let lists = self.load()?;
        for list in &lists {
            self.find_plugins(list)?; // before anything is made that they would have to take away again
        }
        if !pod.capabilities.port_mappings.is_empty() && self.is_ours() && !firewall::is_there() {
            return Err(Error::FailedPrecondition("ports of this machine: neither iptables nor nft is in PATH".into()));
        }
        let _adding = self.collecting.read().await;
        let mut network = PodNetwork::default();
        for (n, list) in lists.iter().enumerate() {
            let interface = format!("eth{n}");
            let result = match self.add_one(list, pod, &interface).await {
                Ok(result) => result,
                Err(error) => {
                    if let Err(also) = self.take_away(pod).await {
                        tracing::warn!(pod = pod.id(), "after a network that failed: {also}");
                    }
                    return Err(error);
                }
            };
            let (addresses, dns) = result::read(&result, &interface)?;
            if n == 0 {
                (network.addresses, network.dns) = (addresses, dns);
            }
            network.results.push(Value::Object(result));
        }
        Ok(network)
    }

    /// Detaches a pod from whatever it was attached to; may be repeated, and needs no namespace to be left.
    ///
    /// # Errors
    /// A plugin is missing or fails. What was not taken away is kept in mind, and tried again by the next call.
    pub async fn remove(&self, pod: &Attachment) -> Result<()> {
        let _removing = self.collecting.read().await;
        self.take_away(pod).await
    }

    /// Waits for plugins that an earlier daemon, which was killed, has left under way for these pods: what they add would
    /// come after its removal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait_for_orphans(&self, pods: &HashSet<String>) -> Result<()> {
        orphan::wait(pods, ORPHANS)
    }

    /// Whether a pod's networks are still as the plugins made them.
    ///
    /// # Errors
    /// `NotFound`: the pod has none; or what a plugin misses.
    pub async fn check(&self, pod: &Attachment) -> Result<()> {
        let entries = self.cache.of(pod.id())?;
        if entries.is_empty() {
            return Err(Error::NotFound(format!("networks of pod {pod}")));
        }
        for entry in entries {
            let list = List::parse(entry.config.clone())?;
            if list.disable_check || list.version < Version::CHECK {
                continue;
            }
            let pod = pod.again(entry.cni_args.clone());
            for plugin in &list.plugins {
                let at = At { pod: &pod, interface: &entry.if_name };
                let input = input(&list, plugin, entry.result.as_ref(), &entry.capability_args);
                self.run(&list, plugin, Verb::Check, Some(at), &input).await?;
            }
        }
        Ok(())
    }

    /// Whether a pod could be attached now.
    ///
    /// # Errors
    /// Why not: no network, a file that cannot be read, a plugin that is missing or says that it is not ready.
    pub async fn status(&self) -> Result<()> {
        for list in self.load()? {
            self.find_plugins(&list)?;
            for plugin in &list.plugins {
                if list.version >= Version::STATUS_AND_GC {
                    let input = input(&list, plugin, None, &Map::new());
                    self.run(&list, plugin, Verb::Status, None, &input).await?;
                }
            }
        }
        Ok(())
    }

    /// Detaches every pod but `valid`, and lets the plugins throw away what belongs to nobody.
    ///
    /// `valid` is asked when nothing is being attached any more, and returns ids.
    ///
    /// # Errors
    /// The last one of those there were; the rest is done nevertheless.
    pub async fn collect(&self, valid: impl FnOnce() -> Result<Vec<String>>) -> Result<()> {
        let _collecting = self.collecting.write().await;
        let valid = valid()?;
        let mut outcome = Ok(());
        let mut attached = Vec::new();
        for id in self.cache.ids()? {
            if valid.contains(&id) {
                for entry in self.cache.of(&id)? {
                    let network = List::parse(entry.config)?.name;
                    attached.push((network, json!({ "containerID": id, "ifname": entry.if_name })));
                }
            } else if let Err(error) = self.take_away(&Attachment::new(&id, None)?).await {
                outcome = Err(error);
            }
        }
        let lists = match self.load() {
            Err(Error::FailedPrecondition(_)) => return outcome, // without a network there is nothing to collect
            lists => lists?,
        };
        for list in lists {
            if list.disable_gc || list.version < Version::STATUS_AND_GC {
                continue;
            }
            let of_list: Vec<&Value> =
                attached.iter().filter(|(network, _)| *network == list.name).map(|(_, pod)| pod).collect();
            for plugin in &list.plugins {
                let mut input = input(&list, plugin, None, &Map::new());
                input.insert("cni.dev/valid-attachments".into(), json!(of_list));
                if let Err(error) = self.run(&list, plugin, Verb::Gc, None, &input).await {
                    outcome = Err(error);
                }
            }
        }
        outcome
    }

    /// Networks as they are configured now, for people.
    ///
    /// # Errors
    /// As [`Network::status`].
    pub fn configuration(&self) -> Result<Vec<Value>> {
        Ok(self.load()?.into_iter().map(|list| list.source).collect())
    }

    fn is_ours(&self) -> bool {
        self.settings.ours || list::is_built_in(&self.settings)
    }

    fn load(&self) -> Result<Vec<List>> {
        if list::is_built_in(&self.settings) {
            if !self.built_in_told.swap(true, Ordering::Relaxed) {
                tracing::info!(
                    "no network configuration in {}: pods get the built-in bridge tare0 with {}",
                    self.settings.conf_dir.display(),
                    self.settings.built_in_subnets.join(", ")
                );
                if !firewall::is_there() {
                    tracing::warn!(
                        "neither iptables nor nft is in PATH: pods reach each other and this machine, and nothing beyond"
                    );
                }
            }
        } else {
            self.built_in_told.store(false, Ordering::Relaxed);
        }
        list::load(&self.settings)
    }

    fn find_plugins(&self, list: &List) -> Result<()> {
        for plugin in &list.plugins {
            plugin::find(&self.settings.bin_dirs, &plugin.program).map_err(|error| of(list, &error))?;
        }
        Ok(())
    }

    async fn add_one(&self, list: &List, pod: &Attachment, interface: &str) -> Result<Map<String, Value>> {
        let mut entry = Entry {
            container_id: pod.id().to_owned(),
            if_name: interface.to_owned(),
            config: list.source.clone(),
            cni_args: pod.args().to_vec(),
            capability_args: pod.capabilities.table(),
            result: None,
        };
        self.cache.put(&entry)?;
        for plugin in &list.plugins {
            let input = input(list, plugin, entry.result.as_ref(), &entry.capability_args);
            let result = self.run(list, plugin, Verb::Add, Some(At { pod, interface }), &input).await?;
            let mut result = result.ok_or_else(|| {
                of(list, &Error::Unknown(format!("plugin {}: ADD: it ended without a result", plugin.program)))
            })?;
            result.entry("cniVersion").or_insert_with(|| list.version.as_str().into());
            entry.result = Some(result);
        }
        self.cache.put(&entry)?;
        Ok(entry.result.unwrap_or_default()) // a list has a plugin
    }

    /// Takes away what the cache knows: an entry is written before the first plugin runs, so without one there is nothing.
    async fn take_away(&self, pod: &Attachment) -> Result<()> {
        let entries = self.cache.of(pod.id())?;
        let mut outcome = Ok(());
        for entry in entries {
            if let Err(error) = self.take_away_one(pod, &entry).await {
                outcome = Err(error);
            }
        }
        outcome.and_then(|()| self.cache.sweep(pod.id()))
    }

    async fn take_away_one(&self, pod: &Attachment, entry: &Entry) -> Result<()> {
        let list = List::parse(entry.config.clone())?;
        let pod = pod.again(entry.cni_args.clone());
        let at = At { pod: &pod, interface: &entry.if_name };
        // CHECK, and DEL since 0.4.0, are told what ADD said.
        let result = entry.result.as_ref().filter(|_| list.version >= Version::CHECK);
        for plugin in list.plugins.iter().rev() {
            let input = input(&list, plugin, result, &entry.capability_args);
            self.run(&list, plugin, Verb::Del, Some(at), &input).await?;
        }
        self.cache.forget(&entry.container_id, &entry.if_name)
    }

    async fn run(
        &self,
        list: &List,
        plugin: &Plugin,
        verb: Verb,
        at: Option<At<'_>>,
        input: &Map<String, Value>,
    ) -> Result<Option<Map<String, Value>>> {
        let bin_dirs: &[PathBuf] = &self.settings.bin_dirs;
        plugin::run(bin_dirs, &plugin.program, verb, at, input).await.map_err(|error| of(list, &error))
    }
}

/// What a plugin reads: its own object, the list's name and version, what came before it, what it can do for this pod.
fn input(
    list: &List,
    plugin: &Plugin,
    before: Option<&Map<String, Value>>,
    capabilities: &Map<String, Value>,
) -> Map<String, Value> {
    let mut input = plugin.object.clone();
    input.insert("name".into(), list.name.as_str().into());
    input.insert("cniVersion".into(), list.version.as_str().into());
    if let Some(before) = before {
        input.insert("prevResult".into(), Value::Object(before.clone()));
    }
    let asked: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| plugin.can(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !asked.is_empty() {
        input.insert("runtimeConfig".into(), Value::Object(asked));
    }
    input
}

/// An error with the network's name before it.
fn of(list: &List, error: &Error) -> Error {
    let name = &list.name;
    match error {
        Error::Unavailable(text) => Error::Unavailable(format!("network {name}: {text}")),
        Error::FailedPrecondition(text) => Error::FailedPrecondition(format!("network {name}: {text}")),
        Error::Unknown(text) => Error::Unknown(format!("network {name}: {text}")),
        other => Error::Unknown(format!("network {name}: {other}")),
    }
}
