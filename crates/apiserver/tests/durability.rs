//! What was acknowledged survives the death of the process.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail loudly")]

mod support;

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use podwire_apiserver::Server;
use serde_json::json;
use support::Cluster;

const DIRECTORY: &str = "PODWIRE_TEST_DURABILITY_DIRECTORY";
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// The process that is killed: it writes without end and says what was
/// acknowledged. Does nothing unless the test below has started it.
#[tokio::test]
async fn writer() {
    let Some(directory) = std::env::var_os(DIRECTORY) else {
        return;
    };
    let server = Server::open(support::config(directory.as_ref()))
        .await
        .unwrap();
    let c = Cluster {
        dir: tempfile::tempdir().unwrap(),
        server,
    };
    for i in 0.. {
        let name = format!("m{i}");
        let made = c
            .post(
                PATH,
                &json!({"metadata": {"name": name}, "data": {"x": "y".repeat(i % 5000)}}),
            )
            .await
            .ok();
        println!(
            "made {name} {}",
            made["metadata"]["resourceVersion"].as_str().unwrap()
        );
        if i % 3 == 2 {
            let name = format!("m{}", i - 2);
            c.delete(&format!("{PATH}/{name}")).await.ok();
            println!("deleted {name} 0");
        }
    }
}

#[tokio::test]
async fn a_killed_server_goes_on_with_all_that_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture", "--test-threads=1"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut made = HashSet::new();
        let mut deleted = HashSet::new();
        let mut last = 0;
        let mut count = 0;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut note = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [.., "made", name, revision] => {
                    made.insert((*name).to_owned());
                    last = revision.parse::<u64>().unwrap();
                }
                ["deleted", name, _] => {
                    deleted.insert((*name).to_owned());
                }
                _ => return,
            }
            count += 1;
        };
        for line in lines.by_ref().take(60 + round * 37) {
            note(&line.unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died, up to a line cut short.
        for line in lines.map_while(Result::ok) {
            if line.split_whitespace().count() >= 3 {
                note(&line);
            }
        }
        assert!(count > 40);
        let server = Server::open(support::config(dir.path())).await.unwrap();
        let c = Cluster {
            dir: tempfile::tempdir().unwrap(),
            server,
        };
        let list = c.get(PATH).await.ok();
        let revision: u64 = list["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(revision >= last, "{revision} {last}");
        let found: HashSet<String> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned())
            .collect();
        for name in made.difference(&deleted) {
            // The one whose deletion was under way may be gone.
            let index: usize = name[1..].parse().unwrap();
            let dying = made.contains(&format!("m{}", index + 2)) && index.is_multiple_of(3);
            assert!(found.contains(name) || dying, "{name} is lost");
        }
        for name in &deleted {
            assert!(!found.contains(name), "{name} is back");
        }
        c.delete(PATH).await.ok();
        c.server.shutdown();
    }
}

#[tokio::test]
async fn two_servers_cannot_share_a_store() {
    let c = Cluster::new().await;
    let error = Server::open(support::config(c.dir.path()))
        .await
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .ends_with("is in use by another API server"),
        "{error}"
    );
}
