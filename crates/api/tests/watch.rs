//! List + watch against an API server in the same process.

use std::time::Duration;

use api::fake::FakeApi;
use api::meta::Resource as _;
use api::watch::Closed;
use api::{Event, Node, Scope, Service};
use podwire_api as api;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// What arrived, in a form that is easy to compare.
#[derive(Debug, PartialEq)]
enum News {
    Applied(String, String),
    Deleted(String),
    Synced,
}

struct Consumer {
    news: mpsc::UnboundedReceiver<News>,
    task: tokio::task::JoinHandle<()>,
}

impl Consumer {
    /// Watches nodes; an object's zone label stands for its content.
    fn start(api: &FakeApi, scope: Scope) -> Consumer {
        let (sender, news) = mpsc::unbounded_channel();
        let task = tokio::spawn(api::watch::watch::<Node>(
            api.client(),
            scope,
            move |event| {
                let news = match event {
                    Event::Applied(node) => News::Applied(
                        node.key().to_string(),
                        node.zone().unwrap_or_default().into(),
                    ),
                    Event::Deleted(key) => News::Deleted(key.to_string()),
                    Event::Synced => News::Synced,
                };
                sender.send(news).map_err(|_| Closed)
            },
        ));
        Consumer { news, task }
    }

    async fn next(&mut self) -> News {
        timeout(Duration::from_secs(10), self.news.recv())
            .await
            .expect("news within ten seconds")
            .expect("the watch goes on")
    }

    async fn expect(&mut self, expected: &[News]) {
        for news in expected {
            assert_eq!(&self.next().await, news);
        }
    }

    fn expect_nothing_more(&mut self) {
        assert!(
            self.news.try_recv().is_err(),
            "nothing else was to be delivered"
        );
    }
}

fn node(name: &str, zone: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}}})
}

fn applied(name: &str, zone: &str) -> News {
    News::Applied(name.into(), zone.into())
}

fn quick() -> Scope {
    Scope {
        page: 2,
        backoff: (Duration::from_millis(5), Duration::from_millis(20)),
        ..Scope::default()
    }
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true")
}

async fn watches(api: &FakeApi, count: usize) {
    timeout(
        Duration::from_secs(10),
        api.until(|log| log.iter().filter(|p| is_watch(p)).count() >= count),
    )
    .await
    .expect("a watch is opened within ten seconds");
}

#[tokio::test]
async fn a_list_of_several_pages_comes_whole_before_synced() {
    let api = FakeApi::start().await;
    for i in 0..5 {
        api.put::<Node>(node(&format!("n{i}"), "a"));
    }
    let mut consumer = Consumer::start(&api, quick());
    for i in 0..5 {
        assert_eq!(consumer.next().await, applied(&format!("n{i}"), "a"));
    }
    consumer.expect(&[News::Synced]).await;
    watches(&api, 1).await;
    let lists: Vec<String> = api
        .requests()
        .into_iter()
        .filter(|p| !is_watch(p))
        .collect();
    assert_eq!(
        lists,
        [
            "/api/v1/nodes?limit=2",
            "/api/v1/nodes?limit=2&continue=2",
            "/api/v1/nodes?limit=2&continue=4"
        ]
    );
}

#[tokio::test]
async fn changes_arrive_in_order() {
    let api = FakeApi::start().await;
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[News::Synced]).await;
    api.put::<Node>(node("n", "a"));
    api.put::<Node>(node("n", "b"));
    api.delete::<Node>("", "n");
    api.put::<Node>(node("n", "c"));
    consumer
        .expect(&[
            applied("n", "a"),
            applied("n", "b"),
            News::Deleted("n".into()),
            applied("n", "c"),
        ])
        .await;
}

#[tokio::test]
async fn a_watch_that_ends_is_opened_again_where_it_was() {
    let api = FakeApi::start().await;
    api.put::<Node>(node("a", "1"));
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[applied("a", "1"), News::Synced]).await;
    watches(&api, 1).await;
    api.end_watches();
    api.put::<Node>(node("b", "1"));
    consumer.expect(&[applied("b", "1")]).await;
    // Only one list ever: the second watch took up at the version reached.
    assert_eq!(api.requests().iter().filter(|p| !is_watch(p)).count(), 1);
    consumer.expect_nothing_more();
}

#[tokio::test]
async fn a_broken_connection_loses_and_repeats_nothing() {
    let api = FakeApi::start().await;
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[News::Synced]).await;
    for round in 0..3 {
        watches(&api, round + 1).await;
        api.put::<Node>(node(&format!("before-{round}"), "x"));
        consumer
            .expect(&[applied(&format!("before-{round}"), "x")])
            .await;
        api.disconnect();
        api.put::<Node>(node(&format!("while-{round}"), "x"));
        consumer
            .expect(&[applied(&format!("while-{round}"), "x")])
            .await;
    }
    consumer.expect_nothing_more();
}

#[tokio::test]
async fn an_expired_version_delivers_only_the_difference() {
    let api = FakeApi::start().await;
    for name in ["changed", "gone", "replaced", "same"] {
        api.put::<Node>(node(name, "old"));
    }
    let mut consumer = Consumer::start(&api, quick());
    for name in ["changed", "gone", "replaced", "same"] {
        consumer.expect(&[applied(name, "old")]).await;
    }
    consumer.expect(&[News::Synced]).await;
    watches(&api, 1).await;

    api.outage(Some(503));
    api.disconnect();
    api.put::<Node>(node("changed", "new"));
    api.delete::<Node>("", "gone");
    api.delete::<Node>("", "replaced");
    api.put::<Node>(node("replaced", "new"));
    api.put::<Node>(node("added", "new"));
    api.compact();
    api.outage(None);

    consumer
        .expect(&[
            applied("added", "new"),
            applied("changed", "new"),
            applied("replaced", "new"),
            News::Deleted("gone".into()),
            News::Synced,
        ])
        .await;
    consumer.expect_nothing_more();
    // And it watches again.
    api.put::<Node>(node("later", "x"));
    consumer.expect(&[applied("later", "x")]).await;
}

#[tokio::test]
async fn bookmarks_move_the_version_along() {
    let api = FakeApi::start().await;
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[News::Synced]).await;
    watches(&api, 1).await;
    // History up to the bookmark is dropped; the watcher must know the
    // bookmark's version, or it would have to list again.
    api.compact();
    api.bookmark::<Node>();
    api.put::<Node>(node("after", "x"));
    consumer.expect(&[applied("after", "x")]).await;
    api.delete::<Node>("", "after");
    consumer.expect(&[News::Deleted("after".into())]).await;
    api.compact();
    api.bookmark::<Node>();
    // A line that is no bookmark follows, so the bookmark has been read.
    api.put::<Node>(node("marker", "x"));
    consumer.expect(&[applied("marker", "x")]).await;
    api.end_watches();
    watches(&api, 2).await;
    api.put::<Node>(node("last", "x"));
    consumer.expect(&[applied("last", "x")]).await;
    assert_eq!(
        api.requests().iter().filter(|p| !is_watch(p)).count(),
        1,
        "no second list"
    );
}

#[tokio::test]
async fn a_list_that_expires_between_pages_starts_over_without_repeating() {
    let api = FakeApi::start().await;
    for i in 0..4 {
        api.put::<Node>(node(&format!("n{i}"), "a"));
    }
    api.expire_list_after(1);
    let mut consumer = Consumer::start(&api, quick());
    for i in 0..4 {
        consumer.expect(&[applied(&format!("n{i}"), "a")]).await;
    }
    consumer.expect(&[News::Synced]).await;
    consumer.expect_nothing_more();
}

#[tokio::test]
async fn an_api_server_that_is_away_at_the_start_is_waited_for() {
    let api = FakeApi::start().await;
    api.put::<Node>(node("a", "1"));
    for status in [500, 401, 403, 404] {
        api.outage(Some(status));
        let before = api.requests().len();
        let mut consumer = Consumer::start(&api, quick());
        timeout(
            Duration::from_secs(10),
            api.until(|log| log.len() >= before + 4),
        )
        .await
        .expect("attempts go on");
        consumer.expect_nothing_more();
        api.outage(None);
        consumer.expect(&[applied("a", "1"), News::Synced]).await;
        consumer.task.abort();
    }
}

#[tokio::test]
async fn an_object_that_cannot_be_read_does_not_stop_the_others() {
    let api = FakeApi::start().await;
    api.put::<Node>(node("good", "1"));
    api.put::<Node>(json!({"metadata": {"name": "odd"}, "spec": {"podCIDRs": 7}}));
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[applied("good", "1"), News::Synced]).await;
    watches(&api, 1).await;
    api.put::<Node>(json!({"metadata": {"name": "odd"}, "spec": "text"}));
    api.send::<Node>(&json!({"type": "FUTURE", "object": {}}));
    api.put::<Node>(node("good", "2"));
    consumer.expect(&[applied("good", "2")]).await;
    // One that was readable once keeps its last readable state, also over a new list.
    api.put::<Node>(json!({"metadata": {"name": "good"}, "spec": 1}));
    api.compact();
    api.disconnect();
    consumer.expect(&[News::Synced]).await;
    consumer.expect_nothing_more();
}

#[tokio::test]
async fn a_watch_that_goes_quiet_is_opened_again() {
    let api = FakeApi::start().await;
    let scope = Scope {
        watch_timeout: Duration::from_millis(10),
        ..quick()
    };
    let mut consumer = Consumer::start(&api, scope);
    consumer.expect(&[News::Synced]).await;
    // The server never ends it: only the watcher's own limit does.
    watches(&api, 2).await;
    assert_eq!(api.requests().iter().filter(|p| !is_watch(p)).count(), 1);
}

#[tokio::test]
async fn selectors_reach_the_server_encoded() {
    let api = FakeApi::start().await;
    let scope = Scope {
        labels: "a in (b,c)".into(),
        fields: "metadata.name=n".into(),
        ..Scope::default()
    };
    let mut consumer = Consumer::start(&api, scope);
    consumer.expect(&[News::Synced]).await;
    assert_eq!(
        api.requests()[0],
        "/api/v1/nodes?labelSelector=a%20in%20%28b%2Cc%29&fieldSelector=metadata.name%3Dn&limit=500"
    );
}

#[tokio::test]
async fn the_watch_ends_with_its_consumer() {
    let api = FakeApi::start().await;
    let mut consumer = Consumer::start(&api, quick());
    consumer.expect(&[News::Synced]).await;
    drop(consumer.news);
    watches(&api, 1).await;
    api.put::<Node>(node("n", "a"));
    timeout(Duration::from_secs(10), consumer.task)
        .await
        .expect("it ends")
        .expect("no panic");
}

#[tokio::test]
async fn namespaced_kinds_have_keys_with_their_namespace() {
    let api = FakeApi::start().await;
    api.put::<Service>(json!({"metadata": {"namespace": "shop", "name": "web"}}));
    let (sender, mut keys) = mpsc::unbounded_channel();
    tokio::spawn(api::watch::watch::<Service>(
        api.client(),
        quick(),
        move |event| {
            if let Event::Applied(service) = event {
                sender.send(service.key().to_string()).map_err(|_| Closed)?;
            }
            Ok(())
        },
    ));
    let key = timeout(Duration::from_secs(10), keys.recv()).await.unwrap();
    assert_eq!(key.as_deref(), Some("shop/web"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_waits_for_requests_does_not_stop_the_server_that_counts_them() {
    const REQUESTS: usize = 1000;
    let api = FakeApi::start().await;
    let address = api.url().replace("http://", "");
    let asking = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for _ in 0..REQUESTS {
            let mut stream = std::net::TcpStream::connect(&address).expect("it listens");
            write!(
                stream,
                "GET /api/v1/nodes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            )
            .expect("writable");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer");
        }
    });
    for count in 1..=REQUESTS {
        api.until(|log| log.len() >= count).await;
    }
    asking.join().expect("each was answered");
}
