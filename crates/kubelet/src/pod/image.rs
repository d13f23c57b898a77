use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;

use super::worker::{Delays, Worker};
use crate::images::{Credentials, Error, Image, Reference, Store};

impl Worker {
    /// The container's image, pulled by its policy; asks again as long as it
    /// can't be had.
    pub(super) async fn ensure_image(&self, container: &k8s::Container, init: bool) -> Image {
        let name = container.image.clone().unwrap_or_default();
        let about = || self.about_container(&container.name, init);
        let mut delays = Delays::new(Duration::from_secs(10), Duration::from_secs(300));
        loop {
            let error = match self.image(container, &name, init).await {
                Ok(image) => return image,
                Err(error) => error,
            };
            let (reason, shown) = match &error {
                Error::Name { .. } => (
                    "InvalidImageName",
                    format!("Failed to apply default image tag \"{name}\": {error}"),
                ),
                Error::Absent(_) => (
                    "ErrImageNeverPull",
                    format!("Container image \"{name}\" is not present with pull policy of Never"),
                ),
                _ => (
                    "ErrImagePull",
                    format!("Failed to pull image \"{name}\": {error}"),
                ),
            };
            self.node.recorder.warning(about(), "Failed", shown.clone());
            self.node
                .recorder
                .warning(about(), "Failed", format!("Error: {reason}"));
            self.wait_because(&container.name, reason, Some(shown.clone()));
            if reason == "ErrImagePull" {
                // Shown as such for a moment, then as waiting.
                tokio::time::sleep(Duration::from_secs(1)).await;
                let waiting = format!("Back-off pulling image \"{name}\": {error}");
                self.node.recorder.normal(
                    about(),
                    "BackOff",
                    format!("Back-off pulling image \"{name}\""),
                );
                self.wait_because(&container.name, "ImagePullBackOff", Some(waiting));
            }
            delays.wait().await;
        }
    }

    async fn image(
        &self,
        container: &k8s::Container,
        name: &str,
        init: bool,
    ) -> Result<Image, Error> {
        if Store::is_built_in(name) {
            return self
                .stored(name)
                .await?
                .ok_or_else(|| Error::Absent(name.into()));
        }
        let reference = Reference::parse(name)?;
        let policy = match container.image_pull_policy.as_deref() {
            Some(policy) => policy,
            None if reference.is_latest() => "Always",
            None => "IfNotPresent",
        };
        let about = || self.about_container(&container.name, init);
        if policy != "Always"
            && let Some(image) = self.stored(name).await?
        {
            self.node.recorder.normal(
                about(),
                "Pulled",
                format!("Container image \"{name}\" already present on machine"),
            );
            return Ok(image);
        }
        if policy == "Never" {
            return Err(Error::Absent(name.into()));
        }
        self.node
            .recorder
            .normal(about(), "Pulling", format!("Pulling image \"{name}\""));
        let begun = tokio::time::Instant::now();
        let credentials = self.credentials(&reference).await;
        let (store, credentials) = (&self.node.store, credentials.as_ref());
        let image = match &self.node.image_network {
            Some(network) => network.pull(store, &reference, credentials).await?,
            None => store.pull(&reference, credentials).await?,
        };
        self.node.recorder.normal(
            about(),
            "Pulled",
            format!(
                "Successfully pulled image \"{name}\" in {} ms",
                begun.elapsed().as_millis()
            ),
        );
        Ok(image)
    }

    /// The credentials the pod's imagePullSecrets hold for a registry.
    async fn credentials(&self, reference: &Reference) -> Option<Credentials> {
        let pod = self.pod();
        for secret in pod.spec.as_ref()?.image_pull_secrets.iter().flatten() {
            let Ok(Some(secret)) = self.secret(&secret.name).await else {
                continue;
            };
            let found = secret
                .data
                .as_ref()
                .and_then(|data| data.get(".dockerconfigjson"))
                .and_then(|config| Credentials::find(&config.0, &reference.registry));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Looks into the store; making the toolbox image there takes a while.
    async fn stored(&self, name: &str) -> Result<Option<Image>, Error> {
        let (store, name) = (self.node.store.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || store.get(&name))
            .await
            .unwrap_or_else(|error| Err(Error::content("looking into the image store", error)))
    }
}
