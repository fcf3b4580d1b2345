//! The vault over gRPC: many at once, lists, the catalogue.

use tonic::Request;

use super::*;
use crate::daemon::{Actor, Engine, reason};

fn item(owner: &str, name: &str, secret: &str) -> ImportCredential {
    let field = |name: &str, value: &str| CredentialField {
        name: name.into(),
        value: value.as_bytes().to_vec().into(),
    };
    ImportCredential {
        owner_name: owner.into(),
        provider: "binance".into(),
        environment: CredentialEnvironment::Production.into(),
        name: name.into(),
        fields: vec![
            field("api_key", &"k".repeat(64)),
            field("api_secret", secret),
        ],
        ..Default::default()
    }
}

async fn import(
    who: &Actor,
    items: &[ImportCredential],
    (replace, dry_run): (bool, bool),
) -> Vec<(ImportResult, String)> {
    let request = ImportCredentialsRequest {
        tenant: "acme".into(),
        items: items.to_vec(),
        replace,
        dry_run,
    };
    let answer = who.credentials().import_credentials(request).await;
    let outcomes = answer.expect("ImportCredentials").into_inner().outcomes;
    let of = |o: &ImportOutcome| (o.result(), o.reason.clone());
    outcomes.iter().map(of).collect()
}

async fn manager(d: &Daemon) -> Actor {
    let request = GrantRoleRequest {
        principal_id: d.id_of("service").await,
        role: "credential-manager".into(),
        tenant: "acme".into(),
    };
    let admin = d.actor("admin");
    admin
        .principals()
        .grant_role(request)
        .await
        .expect("GrantRole");
    d.actor("service")
}

// R-CRED-3, R-CRED-5: what an import sends, and may send again.
async fn a_batch(engine: Engine) {
    use ImportResult::{Conflict, Created, Rejected, Replaced, Unchanged};
    let d = Daemon::start(engine).await;
    let service = manager(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    person(&d, "globex", "eve", &["can.use_users"]).await;
    let good = [
        item("alice", "one", "first"),
        item("alice", "two", "second"),
    ];
    let bad = [
        item("nobody", "one", "planted"),
        item("eve", "one", "planted"),
        item("alice", "one", "planted again"),
        item("alice", "three", "planted\n"),
        ImportCredential {
            provider: "nothing".into(),
            ..item("alice", "four", "planted")
        },
    ];
    let batch = [&good[..], &bad[..]].concat();
    let none = |result| (result, String::new());
    let expected = [
        none(Created),
        none(Created),
        (Rejected, "PRINCIPAL_NOT_FOUND".into()),
        (Rejected, "PRINCIPAL_NOT_FOUND".into()),
        (Rejected, "INVALID_FIELD".into()),
        (Rejected, "INVALID_FIELD".into()),
        (Rejected, "INVALID_FIELD".into()),
    ];
    assert_eq!(import(&service, &batch, (false, true)).await, expected);
    let count = "SELECT id FROM credentials";
    assert!(d.rows(count).await.is_empty(), "a dry run stores nothing");
    assert_eq!(import(&service, &batch, (false, false)).await, expected);
    assert_eq!(d.rows(count).await.len(), 2);

    let again = import(&service, &good, (false, false)).await;
    assert_eq!(again, [none(Unchanged), none(Unchanged)]);
    let changed = [item("alice", "one", "another"), good[1].clone()];
    let kept = import(&service, &changed, (false, false)).await;
    assert_eq!(kept, [(Conflict, "ALREADY_EXISTS".into()), none(Unchanged)]);
    let replaced = import(&service, &changed, (true, false)).await;
    assert_eq!(replaced, [none(Replaced), none(Unchanged)]);

    let listed = alice.get(&d, MINE).await.json();
    let listed = listed["credentials"].as_array().expect("a list").clone();
    let of = |name: &str| {
        let found = listed.iter().find(|c| c["name"] == name);
        let id = found.and_then(|c| c["id"].as_str());
        id.expect("a credential").to_owned()
    };
    for (name, secret) in [("one", "another"), ("two", "second")] {
        let revealed = alice.reveals(&d, &of(name)).await.json();
        assert_eq!(revealed["fields"]["api_secret"], secret);
    }
    let empty = ImportCredentialsRequest {
        tenant: "acme".into(),
        ..Default::default()
    };
    let refused = service.credentials().import_credentials(empty).await;
    assert_eq!(reason(&refused.expect_err("empty")), "INVALID_FIELD");
    let everything = crate::canaries::dump(&d).await + &d.log();
    assert!(!everything.contains("planted"));
    d.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_stores_what_it_can_and_may_come_again_on_sqlite() {
    a_batch(Engine::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_stores_what_it_can_and_may_come_again_on_postgres() {
    a_batch(Engine::Postgres).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_are_of_one_owner_or_tenant_and_come_in_pages() {
    let d = Daemon::start(Engine::Sqlite).await;
    let service = manager(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    person(&d, "acme", "bob", &["can.use_users"]).await;
    let names: Vec<_> = (0..5).map(|i| format!("n{i}")).collect();
    let of = |owner: &str| {
        names
            .iter()
            .map(|n| item(owner, n, "a secret"))
            .collect::<Vec<_>>()
    };
    import(&service, &of("alice"), (false, false)).await;
    import(&service, &of("bob")[..2], (false, false)).await;

    let list = async |owner_id: &str, page_size, environment: CredentialEnvironment| {
        let (mut all, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListCredentialsRequest {
                owner_id: owner_id.into(),
                tenant: "acme".into(),
                environment: environment.into(),
                page_size,
                page_token,
                ..Default::default()
            };
            let page = service.credentials().list_credentials(request).await;
            let page = page.expect("ListCredentials").into_inner();
            all.extend(page.credentials.into_iter().map(|c| c.id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return all;
            }
        }
    };
    let any = CredentialEnvironment::Unspecified;
    let all = list("", 3, any).await;
    assert_eq!(all.len(), 7);
    assert!(all.is_sorted());
    assert_eq!(list("", 1000, any).await, all);
    assert_eq!(list(&alice.id, 2, any).await.len(), 5);
    assert_eq!(list("me", 0, any).await.len(), 0);
    assert!(list("", 0, CredentialEnvironment::Testing).await.is_empty());
    // Over REST too.
    let (mut seen, mut next) = (Vec::new(), String::new());
    loop {
        let page = alice
            .get(&d, &format!("{MINE}?page_size=2{next}"))
            .await
            .json();
        let ids = page["credentials"].as_array().expect("a list").iter();
        seen.extend(ids.map(|c| c["id"].as_str().expect("an id").to_owned()));
        match page["next_page_token"].as_str() {
            Some(token) => next = format!("&page_token={token}"),
            None => break,
        }
    }
    assert_eq!(seen, list(&alice.id, 0, any).await);
    let elsewhere = ListCredentialsRequest {
        tenant: "globex".into(),
        ..Default::default()
    };
    let hidden = service.credentials().list_credentials(elsewhere).await;
    assert_eq!(reason(&hidden.expect_err("hidden")), "TENANT_NOT_FOUND");
    d.stop().await;
}

// R-CRED-4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_sees_the_catalogue() {
    let setup = crate::daemon::Setup::new(Engine::Sqlite).append(
        "[[vault.providers]]\nname = \"mybroker\"\ntitle = \"My broker\"\nkind = \"broker\"\nrotation_days = 7\n\
         fields = [{ name = \"api_key\", formats = [{ prefix = \"mb-\", min = 20 }] }]",
    );
    let d = setup.start().await;
    let other = d.actor("other");
    let listed = other
        .credentials()
        .list_providers(ListProvidersRequest {})
        .await;
    let listed = listed.expect("ListProviders").into_inner().providers;
    let llms = listed.iter().filter(|p| p.kind == "llm").count();
    assert_eq!((llms, listed.len()), (8, 12));
    let mine = listed.iter().find(|p| p.name == "mybroker").expect("mine");
    assert_eq!(
        mine.fields[0].formats,
        ["mb- and at least 20 of A-Z a-z 0-9 - _"]
    );
    assert_eq!(
        mine.rotation_period.expect("a period").seconds,
        7 * 24 * 60 * 60
    );
    let openai = listed.iter().find(|p| p.name == "openai").expect("openai");
    assert_eq!(openai.variables["api_key"], "OPENAI_API_KEY");
    assert_eq!(openai.probe, "GET https://api.openai.com/v1/models");
    d.stop().await;
}

// R-OPS-2: the hash of a request knows nothing of its secret, and another secret under the same key is refused all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_call_keeps_the_first_secret() {
    let d = Daemon::start(Engine::Sqlite).await;
    let service = manager(&d).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let put = |secret: &str| {
        let ImportCredential {
            provider,
            environment,
            fields,
            ..
        } = item("alice", "", secret);
        let mut request = Request::new(PutCredentialRequest {
            owner_id: alice.id.clone(),
            provider,
            environment,
            fields,
            ..Default::default()
        });
        let key = "once".parse().expect("metadata");
        request.metadata_mut().insert("idempotency-key", key);
        request
    };
    let mut stored = Vec::new();
    for secret in ["first", "first"] {
        let answer = service.credentials().put_credential(put(secret)).await;
        stored.push(answer.expect("PutCredential").into_inner());
    }
    assert_eq!(stored[0], stored[1]);
    let other = service.credentials().put_credential(put("second")).await;
    let refused = other.expect_err("another secret");
    assert_eq!(reason(&refused), "IDEMPOTENCY_KEY_REUSED");
    let id = stored[0].credential.clone().expect("a credential").id;
    let revealed = alice.reveals(&d, &id).await.json();
    assert_eq!(revealed["fields"]["api_secret"], "first");
    d.stop().await;
}

// R-OPS-2: over REST too, where nothing that was asked or answered is kept with its secret.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_brings_the_same_secret_or_is_refused() {
    let d = Daemon::start(Engine::Sqlite).await;
    let alice = person(&d, "acme", "alice", &["can.use_users"]).await;
    let bearer = format!("Bearer {}", alice.key);
    let headers = [
        ("authorization", bearer.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", "once"),
    ];
    let put = async |secret: &str, replace: bool| {
        let mut body = binance(secret);
        body["replace"] = replace.into();
        send(&d, Method::POST, MINE, &headers, &body.to_string()).await
    };
    let first = put("planted-one", false).await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = put("planted-one", false).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    problem(
        &put("planted-two", false).await,
        409,
        "IDEMPOTENCY_KEY_REUSED",
    );
    problem(
        &put("planted-one", true).await,
        409,
        "IDEMPOTENCY_KEY_REUSED",
    );
    let id = first.json()["credential"]["id"].as_str().map(str::to_owned);
    let id = id.expect("an id");
    let revealed = alice.reveals(&d, &id).await;
    assert_eq!(revealed.json()["fields"]["api_secret"], "planted-one");
    assert_eq!(revealed.header("content-type"), "application/json");
    // Once the value is gone nobody can tell any more.
    let gone = alice.delete(&d, &format!("{MINE}/{id}")).await;
    assert_eq!(gone.status, 204, "{gone:?}");
    let late = put("planted-two", false).await;
    assert_eq!((late.status, &late.body), (201, &first.body));
    assert!(d.rows("SELECT id FROM credentials").await.is_empty());
    d.stop().await;
}
