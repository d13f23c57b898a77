//! The client of the API server.
//!
//! Built here rather than by `kube`'s default stack for one reason: a watch is
//! a connection on which nothing may happen for minutes, and a node that lost
//! its API server without a farewell (a crashed machine, a cut cable) has to
//! notice. The kernel does it, with TCP keep-alive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

/// A silent connection is probed after this long, and as often after that.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// This many unanswered probes end the connection.
const KEEPALIVE_PROBES: u32 = 3;
/// How long a TCP connection may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kubeconfig that was named cannot be used.
    #[error(
        "cannot use the kubeconfig {path}: {source}; check that the file exists, is readable \
         and has a current context",
        path = .path.display()
    )]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<kube::config::KubeconfigError>,
    },
    /// No kubeconfig was named and this is no pod either.
    #[error(
        "cannot find the API server: {source}; outside of a pod name a kubeconfig with \
         --kubeconfig or KUBECONFIG"
    )]
    InCluster {
        /// What is missing.
        source: Box<kube::config::InClusterError>,
    },
    /// The configuration was read but no client can be made of it.
    #[error("cannot set up the connection to the API server {url}: {source}")]
    Setup {
        /// The API server.
        url: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// A client from a kubeconfig, or from a pod's service account when none is named.
///
/// Nothing is sent yet. Must be called within a tokio runtime.
///
/// # Errors
/// When the configuration is missing or unusable. An API server that cannot be
/// reached is no error here: [`crate::watch`] retries.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, Error> {
    let config = match kubeconfig {
        Some(path) => {
            let failed = |source| Error::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(failed)?
        }
        None => Config::incluster().map_err(|e| Error::InCluster {
            source: Box::new(e),
        })?,
    };
    with_config(config)
}

/// A client for a configuration that is already there.
///
/// # Errors
/// When the configuration's certificates or credentials cannot be used.
pub fn with_config(config: Config) -> Result<Client, Error> {
    let failed = |source| Error::Setup {
        url: config.cluster_url.to_string(),
        source: Box::new(source),
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_keepalive(Some(KEEPALIVE));
    tcp.set_keepalive_interval(Some(KEEPALIVE));
    tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
    // Keep-alive is silent while data waits for its acknowledgement; this bounds that case.
    tcp.set_tcp_user_timeout(Some(KEEPALIVE * KEEPALIVE_PROBES));
    let connector = config
        .rustls_https_connector_with_connector(tcp)
        .map_err(failed)?;
    let transport = hyper_util::client::legacy::Builder::new(TokioExecutor::new())
        .build::<_, kube::client::Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(failed)?)
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_response(|response: http::Response<hyper::body::Incoming>| {
            response.map(|body| body.map_err(BoxError::from).boxed_unsync())
        })
        .map_err(BoxError::from)
        .service(transport);
    Ok(Client::new(service, config.default_namespace))
}
