//! The objects that every cluster has.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::admission::service::first_address;
use crate::http::{App, Call, Target};
use crate::object;
use crate::server::Error;
use crate::status::ApiError;

/// Makes the namespaces and the server's own Service with its endpoints.
pub(crate) async fn run(
    app: &Arc<App>,
    ranges: &[IpNet],
    advertise: &[IpAddr],
    port: u16,
) -> Result<(), Error> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(
            app,
            ("", "v1", "namespaces"),
            None,
            json!({"metadata": {"name": name}}),
        )
        .await?;
    }
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let address = ranges.first().map(first_address);
    ensure(
        app,
        ("", "v1", "services"),
        Some("default"),
        json!({
            "metadata": {"name": "kubernetes", "labels": labels},
            "spec": {
                "clusterIP": address.map(|a| a.to_string()),
                "ipFamilyPolicy": "SingleStack",
                "sessionAffinity": "None",
                "type": "ClusterIP",
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
            },
        }),
    )
    .await?;
    let v6 = address.is_some_and(|a| a.is_ipv6());
    let addresses: Vec<String> = advertise
        .iter()
        .filter(|a| a.is_ipv6() == v6)
        .map(ToString::to_string)
        .collect();
    if addresses.is_empty() {
        return Ok(());
    }
    let list: Vec<Value> = addresses.iter().map(|a| json!({"ip": a})).collect();
    put(
        app,
        ("", "v1", "endpoints"),
        json!({
            "metadata": {
                "name": "kubernetes",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{
                "addresses": list,
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }],
        }),
    )
    .await?;
    put(
        app,
        ("discovery.k8s.io", "v1", "endpointslices"),
        json!({
            "metadata": {
                "name": "kubernetes",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": if v6 { "IPv6" } else { "IPv4" },
            "endpoints": [{"addresses": addresses, "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    )
    .await
}

type Path<'a> = (&'a str, &'a str, &'a str);

fn call(app: &Arc<App>, path: Path<'_>, namespace: Option<&str>) -> Result<Call, Error> {
    let resource = app
        .registry
        .current()
        .find(path.0, path.1, path.2)
        .ok_or_else(|| Error::Bootstrap {
            what: path.2.to_owned(),
            reason: ApiError::no_such_path(),
        })?;
    Ok(Call::internal(
        Arc::clone(app),
        Target {
            resource,
            namespace: namespace.map(str::to_owned),
            name: None,
            subresource: None,
        },
        HeaderMap::new(),
    ))
}

fn failed(path: Path<'_>, object: &Value, reason: ApiError) -> Error {
    Error::Bootstrap {
        what: format!("{} {:?}", path.2, object::name(object)),
        reason,
    }
}

/// Creates an object if it does not exist.
async fn ensure(
    app: &Arc<App>,
    path: Path<'_>,
    namespace: Option<&str>,
    object: Value,
) -> Result<(), Error> {
    match call(app, path, namespace)?
        .create_object(object.clone(), false)
        .await
    {
        Ok(_) => Ok(()),
        Err(e) if e.reason == "AlreadyExists" => Ok(()),
        Err(e) => Err(failed(path, &object, e)),
    }
}

/// Creates an object, or brings it up to date: addresses may have changed
/// since the last start.
async fn put(app: &Arc<App>, path: Path<'_>, object: Value) -> Result<(), Error> {
    ensure(app, path, Some("default"), object.clone()).await?;
    let mut call = call(app, path, Some("default"))?;
    call.replace_object(object::name(&object), &object)
        .await
        .map_err(|e| failed(path, &object, e))
}
