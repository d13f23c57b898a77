//! A container's environment: Service variables, then envFrom, then env with
//! `$(NAME)` references, in the order and with the rules of Kubernetes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as k8s;

/// Variables in their order; a later one replaces an earlier one in its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    names: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let name = name.into();
        if self.values.insert(name.clone(), value.into()).is_none() {
            self.names.push(name);
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// As `NAME=value`.
    pub(crate) fn pairs(&self) -> Vec<String> {
        self.names
            .iter()
            .map(|name| format!("{name}={}", self.values[name]))
            .collect()
    }

    /// Replaces `$(NAME)` by the variable's value; `$$` stands for `$`, and a
    /// reference to an unknown variable stays as it is.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            let after = &rest[at + 1..];
            if let Some(next) = after.strip_prefix('$') {
                out.push('$');
                rest = next;
            } else if let Some((name, next)) = after
                .strip_prefix('(')
                .and_then(|inner| inner.split_once(')'))
            {
                match self.get(name) {
                    Some(value) => out.push_str(value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = next;
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        out
    }
}

/// The variables that announce Services (docker links among them). Headless
/// ones and those without ports have none.
pub(crate) fn service_variables(services: &[k8s::Service], environment: &mut Environment) {
    for service in services {
        let (Some(name), Some(spec)) = (service.metadata.name.as_deref(), &service.spec) else {
            continue;
        };
        let Some(address) = spec
            .cluster_ip
            .as_deref()
            .filter(|address| !address.is_empty() && *address != "None")
        else {
            continue;
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else {
            continue;
        };
        let prefix = name.to_uppercase().replace('-', "_");
        let literal = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let protocol =
            |port: &k8s::ServicePort| port.protocol.clone().unwrap_or_else(|| "TCP".into());
        environment.set(format!("{prefix}_SERVICE_HOST"), address);
        environment.set(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
        for port in ports {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                environment.set(
                    format!("{prefix}_SERVICE_PORT_{name}"),
                    port.port.to_string(),
                );
            }
        }
        let url = |port: &k8s::ServicePort| {
            format!(
                "{}://{literal}:{}",
                protocol(port).to_lowercase(),
                port.port
            )
        };
        environment.set(format!("{prefix}_PORT"), url(first));
        for port in ports {
            let one = format!("{prefix}_PORT_{}_{}", port.port, protocol(port));
            environment.set(one.clone(), url(port));
            environment.set(format!("{one}_PROTO"), protocol(port).to_lowercase());
            environment.set(format!("{one}_PORT"), port.port.to_string());
            environment.set(format!("{one}_ADDR"), address);
        }
    }
}

/// The ConfigMaps and Secrets a pod's containers take variables from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, k8s::ConfigMap>,
    pub(crate) secrets: BTreeMap<String, k8s::Secret>,
}

impl Sources {
    fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<Option<&k8s::ConfigMap>, String> {
        present(self.config_maps.get(name), "configmap", name, optional)
    }

    fn secret(&self, name: &str, optional: Option<bool>) -> Result<Option<&k8s::Secret>, String> {
        present(self.secrets.get(name), "secret", name, optional)
    }
}

fn present<'a, T>(
    found: Option<&'a T>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a T>, String> {
    match found {
        None if optional != Some(true) => Err(format!("{kind} \"{name}\" not found")),
        found => Ok(found),
    }
}

/// What fields of a pod on this node are, for the downward API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Downward<'a> {
    pub(crate) pod: &'a k8s::Pod,
    pub(crate) pod_ips: &'a [std::net::IpAddr],
    pub(crate) host_ips: &'a [std::net::IpAddr],
    pub(crate) node: &'a str,
}

impl Downward<'_> {
    /// The value of a `fieldRef`.
    pub(crate) fn field(&self, path: &str) -> Result<String, String> {
        let meta = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let list = |ips: &[std::net::IpAddr]| {
            let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
            texts.join(",")
        };
        let first =
            |ips: &[std::net::IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
        let whole = |map: &Option<BTreeMap<String, String>>| {
            let lines: Vec<String> = map
                .iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value:?}"))
                .collect();
            lines.join("\n")
        };
        let entry = |map: &Option<BTreeMap<String, String>>, key: &str| {
            map.as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default()
        };
        if let Some((field, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
            return match field {
                "metadata.labels" => Ok(entry(&meta.labels, key)),
                "metadata.annotations" => Ok(entry(&meta.annotations, key)),
                _ => Err(format!("field {path} has no keys")),
            };
        }
        Ok(match path {
            "metadata.name" => meta.name.clone().unwrap_or_default(),
            "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
            "metadata.uid" => meta.uid.clone().unwrap_or_default(),
            "metadata.labels" => whole(&meta.labels),
            "metadata.annotations" => whole(&meta.annotations),
            "spec.nodeName" => self.node.to_owned(),
            "spec.serviceAccountName" => spec
                .and_then(|spec| spec.service_account_name.clone())
                .unwrap_or_default(),
            "status.hostIP" => first(self.host_ips),
            "status.hostIPs" => list(self.host_ips),
            "status.podIP" => first(self.pod_ips),
            "status.podIPs" => list(self.pod_ips),
            _ => return Err(format!("field {path} is not one the downward API offers")),
        })
    }

    /// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
    pub(crate) fn resource(
        &self,
        selector: &k8s::ResourceFieldSelector,
        container: Option<&k8s::Container>,
    ) -> Result<String, String> {
        let named = selector.container_name.as_deref().and_then(|name| {
            let spec = self.pod.spec.as_ref()?;
            let init = spec.init_containers.iter().flatten();
            spec.containers.iter().chain(init).find(|c| c.name == name)
        });
        let container = named
            .or(container)
            .ok_or("resourceFieldRef needs a containerName here")?;
        let (kind, name) = selector
            .resource
            .split_once('.')
            .ok_or_else(|| format!("resource {} is not one", selector.resource))?;
        let resources = container.resources.as_ref();
        let map = match kind {
            "limits" => resources.and_then(|r| r.limits.as_ref()),
            "requests" => resources.and_then(|r| r.requests.as_ref()),
            _ => return Err(format!("resource {} is not one", selector.resource)),
        };
        let value = map
            .and_then(|map| map.get(name))
            .and_then(super::quantity::milli)
            .unwrap_or(0);
        let divisor = selector
            .divisor
            .as_ref()
            .and_then(super::quantity::milli)
            .filter(|divisor| *divisor > 0)
            .unwrap_or(1000);
        Ok((value.saturating_add(divisor - 1) / divisor).to_string())
    }
}

/// Whether a key can be a variable's name.
fn is_name(key: &str) -> bool {
    !key.is_empty() && !key.contains('=') && key.chars().all(|c| c.is_ascii_graphic())
}

/// Adds a container's envFrom and env to what is there (the Service variables
/// and the image's).
///
/// # Errors
/// Why the container can't be configured: what is missing.
pub(crate) fn container_variables(
    container: &k8s::Container,
    sources: &Sources,
    downward: Downward<'_>,
    environment: &mut Environment,
) -> Result<(), String> {
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |key: &str, value: String| {
            let name = format!("{prefix}{key}");
            if is_name(&name) {
                environment.set(name, value);
            }
        };
        if let Some(source) = &from.config_map_ref
            && let Some(map) = sources.config_map(&source.name, source.optional)?
        {
            for (key, value) in map.data.iter().flatten() {
                add(key, value.clone());
            }
        }
        if let Some(source) = &from.secret_ref
            && let Some(secret) = sources.secret(&source.name, source.optional)?
        {
            for (key, value) in secret.data.iter().flatten() {
                add(key, String::from_utf8_lossy(&value.0).into_owned());
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => Some(environment.expand(variable.value.as_deref().unwrap_or_default())),
            Some(from) => value_from(from, container, sources, downward)?,
        };
        if let Some(value) = value {
            environment.set(variable.name.clone(), value);
        }
    }
    Ok(())
}

fn value_from(
    from: &k8s::EnvVarSource,
    container: &k8s::Container,
    sources: &Sources,
    downward: Downward<'_>,
) -> Result<Option<String>, String> {
    if let Some(field) = &from.field_ref {
        return downward.field(&field.field_path).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return downward.resource(resource, Some(container)).map(Some);
    }
    if let Some(key) = &from.config_map_key_ref {
        let map = sources.config_map(&key.name, key.optional)?;
        let value = map.and_then(|map| map.data.as_ref()?.get(&key.key).cloned());
        return keyed(value, "ConfigMap", &key.name, &key.key, key.optional);
    }
    if let Some(key) = &from.secret_key_ref {
        let secret = sources.secret(&key.name, key.optional)?;
        let value = secret
            .and_then(|secret| secret.data.as_ref()?.get(&key.key))
            .map(|value| String::from_utf8_lossy(&value.0).into_owned());
        return keyed(value, "Secret", &key.name, &key.key, key.optional);
    }
    Ok(None)
}

fn keyed(
    value: Option<String>,
    kind: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    if value.is_none() && optional != Some(true) {
        return Err(format!("couldn't find key {key} in {kind} {name}"));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    #[rstest]
    #[case("$(A)", "1")]
    #[case("x$(A)y$(B)", "x1y2")]
    #[case("$$(A)", "$(A)")]
    #[case("$(NONE)", "$(NONE)")]
    #[case("$A $", "$A $")]
    #[case("$(A", "$(A")]
    fn references_expand_as_kubernetes_has_it(#[case] text: &str, #[case] expanded: &str) {
        let mut environment = Environment::default();
        environment.set("A", "1");
        environment.set("B", "2");
        assert_eq!(environment.expand(text), expanded);
    }

    #[test]
    fn services_are_announced_with_links() {
        let service: k8s::Service = serde_json::from_value(json!({
            "metadata": {"name": "my-db"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"name": "sql", "port": 5432}]}
        }))
        .unwrap();
        let headless: k8s::Service = serde_json::from_value(json!({
            "metadata": {"name": "quiet"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}
        }))
        .unwrap();
        let mut environment = Environment::default();
        service_variables(&[service, headless], &mut environment);
        assert_eq!(
            environment.pairs(),
            [
                "MY_DB_SERVICE_HOST=10.96.0.7",
                "MY_DB_SERVICE_PORT=5432",
                "MY_DB_SERVICE_PORT_SQL=5432",
                "MY_DB_PORT=tcp://10.96.0.7:5432",
                "MY_DB_PORT_5432_TCP=tcp://10.96.0.7:5432",
                "MY_DB_PORT_5432_TCP_PROTO=tcp",
                "MY_DB_PORT_5432_TCP_PORT=5432",
                "MY_DB_PORT_5432_TCP_ADDR=10.96.0.7",
            ]
        );
    }

    fn pod() -> k8s::Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web"}},
            "spec": {"containers": [{
                "name": "c",
                "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}},
                "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "m"}}],
                "env": [
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                    {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                    {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
                    {"name": "MAYBE", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "z", "optional": true}}},
                    {"name": "BOTH", "value": "$(NAME)-$(CM_k)"}
                ]
            }]}
        }))
        .unwrap()
    }

    #[test]
    fn variables_come_from_fields_resources_and_maps() {
        let pod = pod();
        let mut sources = Sources::default();
        sources.config_maps.insert(
            "m".into(),
            serde_json::from_value(json!({"data": {"k": "v"}})).unwrap(),
        );
        let downward = Downward {
            pod: &pod,
            pod_ips: &["10.0.0.1".parse().unwrap()],
            host_ips: &[],
            node: "n1",
        };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let mut environment = Environment::default();
        container_variables(container, &sources, downward, &mut environment).unwrap();
        assert_eq!(
            environment.pairs(),
            [
                "CM_k=v",
                "NAME=p",
                "IP=10.0.0.1",
                "APP=web",
                "CPU=2",
                "MEM=64",
                "KEY=v",
                "BOTH=p-v"
            ]
        );
        let missing = container_variables(
            container,
            &Sources::default(),
            downward,
            &mut Environment::default(),
        );
        assert_eq!(missing.unwrap_err(), "configmap \"m\" not found");
    }
}
