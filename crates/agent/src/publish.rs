//! What this node tells its peers: annotations of its own Node object.

use std::collections::BTreeMap;
use std::time::Duration;

use api::meta::{FLANNEL_ANNOTATIONS, Labels, OWN_ANNOTATIONS};
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
    /// Its annotations, as far as they are read at all.
    pub(crate) annotations: Labels,
}

/// What is to be told: annotations by their names as they are read.
pub(crate) type Told = BTreeMap<String, String>;

/// Keeps this node's annotations at what is wanted, by a merge patch that
/// touches nothing else of the object.
pub(crate) struct Publisher {
    client: Client,
    node: Key,
    news: UnboundedSender<News>,
    /// The annotations wanted, once they are known.
    wanted: Option<Told>,
    /// What was written over what, while the watch does not show it yet.
    written: Option<(Told, Present)>,
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

    /// What the annotations are to say.
    pub(crate) fn want(&mut self, told: Told) {
        self.wanted = Some(told);
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
        let is_there = |(name, text): (&String, &String)| {
            let there = present.annotations.get(&**name);
            there.is_some_and(|there| **there == **text)
        };
        if wanted.iter().all(is_there) {
            self.written = None;
            return;
        }
        let is_written = |(told, over): &(Told, Present)| told == wanted && over == present;
        if self.written.as_ref().is_some_and(is_written) {
            return;
        }
        self.written = Some((wanted.clone(), present.clone()));
        let annotations: BTreeMap<String, &String> = wanted
            .iter()
            .map(|(name, text)| (whole_name(name), text))
            .collect();
        let document = json!({"metadata": {"annotations": annotations}});
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

/// An annotation's name in the object.
fn whole_name(name: &str) -> String {
    if name.starts_with(FLANNEL_ANNOTATIONS) {
        name.to_owned()
    } else {
        format!("{OWN_ANNOTATIONS}{name}")
    }
}
