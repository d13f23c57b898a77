//! Volumes of API objects follow their objects.

use std::collections::BTreeSet;
use std::convert::Infallible;

use futures::StreamExt;
use futures::stream::{LocalBoxStream, SelectAll};
use k8s_openapi::api::core::v1 as k8s;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};

use super::volumes::{volume_dir, write_files};
use super::worker::Worker;
use crate::kubelet::Retry;

/// The objects whose content a pod's volumes show.
#[derive(Debug, Default, PartialEq, Eq)]
struct Objects<'a> {
    config_maps: BTreeSet<&'a str>,
    secrets: BTreeSet<&'a str>,
}

impl<'a> Objects<'a> {
    fn of(spec: &'a k8s::PodSpec) -> Self {
        let mut objects = Self::default();
        for volume in spec.volumes.iter().flatten() {
            let maps = volume.config_map.iter().map(|map| map.name.as_str());
            objects.config_maps.extend(maps);
            let secrets = volume.secret.iter();
            objects
                .secrets
                .extend(secrets.filter_map(|secret| secret.secret_name.as_deref()));
            let projected = volume.projected.iter();
            for part in projected.flat_map(|p| p.sources.iter().flatten()) {
                objects
                    .config_maps
                    .extend(part.config_map.iter().map(|map| map.name.as_str()));
                objects
                    .secrets
                    .extend(part.secret.iter().map(|secret| secret.name.as_str()));
            }
        }
        objects
    }
}

impl Worker {
    /// Rewrites volumes when their objects, or the pod's own labels and
    /// annotations, change. Never returns.
    pub(super) async fn follow_volumes(&self) -> Infallible {
        let pod = self.pod();
        let namespace = self.record.borrow().namespace.clone();
        let mut changes: SelectAll<LocalBoxStream<'_, ()>> = SelectAll::new();
        // Keeps the loop below going also for pods without such volumes.
        changes.push(futures::stream::pending().boxed_local());
        if let Some(spec) = &pod.spec {
            let objects = Objects::of(spec);
            for name in objects.config_maps {
                let api = Api::<k8s::ConfigMap>::namespaced(self.node.client.clone(), &namespace);
                changes.push(changes_of(api, name));
            }
            for name in objects.secrets {
                let api = Api::<k8s::Secret>::namespaced(self.node.client.clone(), &namespace);
                changes.push(changes_of(api, name));
            }
        }
        let mut update = self.update.clone();
        loop {
            tokio::select! {
                _ = changes.next() => {}
                Ok(()) = update.changed() => {}
            }
            self.rewrite_volumes().await;
        }
    }

    async fn rewrite_volumes(&self) {
        let pod = self.pod();
        let Some(spec) = &pod.spec else { return };
        let group = spec.security_context.as_ref().and_then(|s| s.fs_group);
        for volume in spec.volumes.iter().flatten() {
            let dir = volume_dir(&self.uid, &volume.name);
            // An object that has been deleted leaves the files as they were.
            if let Ok(Some(files)) = self.volume_files(&pod, volume).await
                && let Err(reason) = write_files(&dir, &files, group)
            {
                self.node
                    .recorder
                    .warning(self.about(), "FailedMount", reason);
            }
        }
    }
}

/// A tick for each state of an object after the first.
fn changes_of<'a, K>(api: Api<K>, name: &str) -> LocalBoxStream<'a, ()>
where
    K: kube::Resource + Clone + std::fmt::Debug + Send + serde::de::DeserializeOwned + 'static,
    K::DynamicType: Default,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher::watcher(api, config)
        .backoff(Retry::default())
        .filter_map(async |event| event.ok())
        .filter(|event| {
            let changed = matches!(event, watcher::Event::Apply(_) | watcher::Event::InitDone);
            std::future::ready(changed)
        })
        .map(|_| ())
        .boxed_local()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn projected_volumes_follow_their_parts_too() {
        let spec: k8s::PodSpec = serde_json::from_value(json!({"containers": [], "volumes": [
            {"name": "a", "configMap": {"name": "m1"}},
            {"name": "b", "secret": {"secretName": "s1"}},
            {"name": "c", "projected": {"sources": [{"configMap": {"name": "m2"}}, {"secret": {"name": "s2"}}]}},
            {"name": "d", "emptyDir": {}}
        ]}))
        .unwrap();
        let objects = Objects::of(&spec);
        assert_eq!(
            objects.config_maps.into_iter().collect::<Vec<_>>(),
            ["m1", "m2"]
        );
        assert_eq!(
            objects.secrets.into_iter().collect::<Vec<_>>(),
            ["s1", "s2"]
        );
    }
}
