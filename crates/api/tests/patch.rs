//! Writing to the API server.

use podwire_api::fake::FakeApi;
use podwire_api::{Key, Node, Service, patch};
use serde_json::json;

#[tokio::test]
async fn a_merge_changes_what_it_names_and_nothing_else() {
    let api = FakeApi::start().await;
    api.put::<Node>(json!({"metadata": {"name": "n",
        "annotations": {"other": "stays", "podwire.dev/old": "goes"}}}));
    let document = json!({"metadata": {"annotations": {
        "podwire.dev/new": "comes", "podwire.dev/old": null}}});
    patch::merge::<Node>(&api.client(), &Key::new("", "n"), &document)
        .await
        .expect("it is there");
    let node = api.get::<Node>("", "n").expect("it is there");
    assert_eq!(
        node["metadata"]["annotations"],
        json!({"other": "stays", "podwire.dev/new": "comes"})
    );
}

#[tokio::test]
async fn a_namespaced_object_is_found_by_its_key() {
    let api = FakeApi::start().await;
    api.put::<Service>(json!({"metadata": {"namespace": "shop", "name": "web"}}));
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    patch::merge::<Service>(&api.client(), &Key::new("shop", "web"), &label)
        .await
        .expect("it is there");
    let service = api.get::<Service>("shop", "web").expect("it is there");
    assert_eq!(service["metadata"]["labels"], json!({"a": "b"}));
}

#[tokio::test]
async fn an_object_that_is_not_there_is_an_error_with_its_status() {
    let api = FakeApi::start().await;
    let error = patch::merge::<Node>(&api.client(), &Key::new("", "n"), &json!({}))
        .await
        .expect_err("it is not there");
    assert!(
        matches!(&error, kube::Error::Api(status) if status.code == 404),
        "{error}"
    );
}
