//! Events: what a person sees at the end of `kubectl describe`.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use http::Method;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Who writes, as Events name it.
const COMPONENT: &str = "podwire";
/// The longest message the API server takes (`validation.NoteLengthLimit`), bytes.
const LONGEST: usize = 1024;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum About {
    /// A Service, by namespace and name.
    Service(String, String),
    /// This node.
    Node,
}

impl About {
    /// A Service.
    pub(crate) fn service(name: &services::ServiceName) -> About {
        About::Service(name.namespace.to_string(), name.name.to_string())
    }
}

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Warning {
    /// What it is about.
    pub(crate) about: About,
    /// A word for programs, in the case of Events.
    pub(crate) reason: &'static str,
    /// What is wrong, why, and what to do.
    pub(crate) message: String,
}

/// Takes warnings: they are logged at once, and written as Events in the background.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(UnboundedSender<Warning>);

impl Recorder {
    /// A recorder, and its other end.
    pub(crate) fn new() -> (Recorder, UnboundedReceiver<Warning>) {
        let (sender, inbox) = unbounded_channel();
        (Recorder(sender), inbox)
    }

    /// Warns. Nobody waits for the Event, and nothing fails because of one.
    pub(crate) fn warn(&self, warning: Warning) {
        match &warning.about {
            About::Service(namespace, name) => tracing::warn!(
                reason = warning.reason,
                "Service {namespace}/{name}: {}",
                warning.message
            ),
            About::Node => tracing::warn!(reason = warning.reason, "{}", warning.message),
        }
        // The writer ends with the agent.
        let _ = self.0.send(warning);
    }
}

/// Writes Events until nobody warns any more.
pub(crate) async fn write(client: Client, node: String, mut inbox: UnboundedReceiver<Warning>) {
    while let Some(warning) = inbox.recv().await {
        if let Err(error) = write_one(&client, &node, &warning).await {
            // It is in the log already.
            tracing::debug!("cannot write an Event: {error}");
        }
    }
}

async fn write_one(client: &Client, node: &str, warning: &Warning) -> Result<(), kube::Error> {
    let involved = match &warning.about {
        About::Node => json!({"kind": "Node", "apiVersion": "v1", "name": node, "uid": node}),
        About::Service(namespace, name) => {
            let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
            let service = match request(client, Method::GET, &path, None).await {
                Err(error) if is_status(&error, 404) => return Ok(()),
                result => result?,
            };
            json!({"kind": "Service", "apiVersion": "v1", "namespace": namespace, "name": name,
                "uid": service["metadata"]["uid"]})
        }
    };
    let event = event(&involved, node, warning, Timestamp::now());
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or_default();
    let all = format!("/api/v1/namespaces/{namespace}/events");
    match request(client, Method::POST, &all, Some(&event)).await {
        Err(error) if is_status(&error, 409) => {}
        result => return result.map(drop),
    }
    // Written before, perhaps by the agent before this one: once more.
    let name = event["metadata"]["name"].as_str().unwrap_or_default();
    let one = format!("{all}/{name}");
    let there = request(client, Method::GET, &one, None).await?;
    let count = there["count"].as_i64().unwrap_or(0).saturating_add(1);
    let again = json!({"count": count, "lastTimestamp": event["lastTimestamp"]});
    request(client, Method::PATCH, &one, Some(&again)).await?;
    Ok(())
}

/// The Event (core/v1). Its name is the same each time the same is said.
fn event(involved: &Value, node: &str, warning: &Warning, now: Timestamp) -> Value {
    let mut hasher = DefaultHasher::new();
    (involved.to_string(), node, warning.reason, &warning.message).hash(&mut hasher);
    let about = involved["name"].as_str().unwrap_or_default();
    // Names have at most 253 characters, those of Services at most 63.
    let about = &about[..about.len().min(200)];
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let mut message = warning.message.clone();
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST));
    }
    json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": format!("{about}.{:016x}", hasher.finish()),
            "namespace": involved["namespace"].as_str().unwrap_or("default"),
        },
        "involvedObject": involved,
        "type": "Warning",
        "reason": warning.reason,
        "message": message,
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    })
}

async fn request(
    client: &Client,
    method: Method,
    path: &str,
    body: Option<&Value>,
) -> Result<Value, kube::Error> {
    let kind = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, kind)
        .body(body.map_or_else(Vec::new, |body| body.to_string().into_bytes()))
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

fn is_status(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning(message: &str) -> Warning {
        Warning {
            about: About::Service("shop".into(), "web".into()),
            reason: "PortTaken",
            message: message.into(),
        }
    }

    #[test]
    fn the_same_said_again_is_the_same_event() {
        let involved = json!({"kind": "Service", "namespace": "shop", "name": "web", "uid": "u"});
        let name = |message: &str, second: i64| {
            let now = Timestamp::from_second(second).unwrap();
            let event = event(&involved, "node-1", &warning(message), now);
            event["metadata"]["name"].as_str().unwrap().to_owned()
        };
        assert_eq!(name("a", 1), name("a", 2));
        assert_ne!(name("a", 1), name("b", 1));
        assert!(name("a", 1).starts_with("web."));
    }

    #[test]
    fn an_event_says_who_what_and_when() {
        let involved = json!({"kind": "Node", "name": "node-1"});
        let now = Timestamp::from_second(0).unwrap();
        let event = event(&involved, "node-1", &warning(&"é".repeat(900)), now);
        assert_eq!(event["metadata"]["namespace"], "default");
        assert_eq!(event["firstTimestamp"], "1970-01-01T00:00:00Z");
        assert_eq!(event["message"].as_str().unwrap().len(), 1024);
        assert_eq!(
            event["source"],
            json!({"component": "podwire", "host": "node-1"})
        );
    }
}
