//! What this node tells its peers: annotations of its own Node object.

use std::time::Duration;

use api::{Key, Node};
use kube::Client;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;

use crate::run::News;

/// Name, behind `podwire.dev/`, of the annotation that says how a node is reached.
pub(crate) const ROUTING: &str = "routing";
/// Before an annotation that could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What the object says, as the watch shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// The object's identity: one deleted and made again has another.
    pub(crate) uid: Box<str>,
    /// The annotation.
    pub(crate) text: Option<Box<str>>,
}

/// Keeps this node's annotation at what is wanted, by a merge patch that
/// touches nothing else of the object.
pub(crate) struct Publisher {
    client: Client,
    node: Key,
    news: UnboundedSender<News>,
    /// The text wanted, once it is known.
    wanted: Option<String>,
    /// What was written over what, while the watch does not show it yet.
    written: Option<(String, Present)>,
    /// A patch is under way, or a pause after one that failed.
    busy: bool,
    problem: Option<String>,
}

impl Publisher {
    pub(crate) fn new(client: Client, node: &str, news: UnboundedSender<News>) -> Publisher {
        Publisher {
            client,
            node: Key::new("", node),
            news,
            wanted: None,
            written: None,
            busy: false,
            problem: None,
        }
    }

    /// What the annotation is to say.
    pub(crate) fn want(&mut self, text: String) {
        self.wanted = Some(text);
    }

    /// A patch came to its end.
    pub(crate) fn done(&mut self, outcome: Result<(), String>) {
        self.busy = outcome.is_err();
        if outcome.is_err() {
            self.written = None;
        }
        self.problem = outcome.err();
    }

    /// The pause after a failed patch is over.
    pub(crate) fn again(&mut self) {
        self.busy = false;
    }

    /// Why the annotation cannot be written.
    pub(crate) fn problem(&self) -> Option<&String> {
        self.problem.as_ref()
    }

    /// Starts a patch if the object, which is there, says something else.
    pub(crate) fn settle(&mut self, present: &Present) {
        let Some(wanted) = self.wanted.as_ref().filter(|_| !self.busy) else {
            return;
        };
        if present.text.as_deref() == Some(wanted) {
            self.written = None;
            return;
        }
        let is_written = |(text, over): &(String, Present)| text == wanted && over == present;
        if self.written.as_ref().is_some_and(is_written) {
            return;
        }
        self.written = Some((wanted.clone(), present.clone()));
        let name = format!("{}{ROUTING}", api::meta::OWN_ANNOTATIONS);
        let document = json!({"metadata": {"annotations": {name: wanted}}});
        let (client, node, news) = (self.client.clone(), self.node.clone(), self.news.clone());
        self.busy = true;
        tokio::spawn(async move {
            let outcome = api::patch::merge::<Node>(&client, &node, &document)
                .await
                .map_err(|error| {
                    format!(
                        "cannot tell the other nodes how this one is reached (annotation of Node \
                         {}): {error}; is the agent allowed to patch nodes (deploy/podwire.yaml)?",
                        node.name
                    )
                });
            let failed = outcome.is_err();
            // Nobody wants to know any more when the loop has ended.
            let _ = news.send(News::Published(outcome));
            if failed {
                tokio::time::sleep(AGAIN).await;
                let _ = news.send(News::PublishAgain);
            }
        });
    }
}
