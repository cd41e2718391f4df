use std::path::Path;
use std::time::{Duration, SystemTime};

use ambit_objects::Objects;
use rcgen::KeyPair;

use super::{AUDIENCE, Bound, Caller, Denied, Reviewer, Wanted, make};

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, uid: u1}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {phase: Running}
---
apiVersion: v1
kind: Pod
metadata: {name: nameless, namespace: shop}
spec: {nodeName: n1, containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: done, namespace: shop, uid: u3}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {phase: Failed}
";

fn wanted() -> Wanted {
    Wanted {
        namespace: "shop".to_owned(),
        service_account: "web".to_owned(),
        pod: Some(Bound {
            name: "web".to_owned(),
            uid: "u1".to_owned(),
        }),
        node: Some("n1".to_owned()),
        audience: AUDIENCE.to_owned(),
        issuer: "test".to_owned(),
        ttl: Duration::from_secs(3600),
    }
}

struct World {
    key: KeyPair,
    objects: Objects,
    now: SystemTime,
}

impl World {
    fn new() -> Self {
        let objects = Objects::from_text(Path::new("test.yaml"), PODS);
        assert_eq!(objects.problems, []);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        Self {
            key: KeyPair::generate().unwrap(),
            objects,
            now,
        }
    }

    fn token(&self, wanted: Wanted) -> String {
        make(&self.key.serialize_pem(), wanted, self.now).unwrap()
    }

    fn review_at(&self, token: &str, now: SystemTime) -> Result<Caller, Denied> {
        let public = self.key.public_key_pem();
        Reviewer::new([public.as_str()])
            .unwrap()
            .review(token, &self.objects, now)
    }

    fn review(&self, token: &str) -> Result<Caller, Denied> {
        self.review_at(token, self.now)
    }
}

#[test]
fn a_good_token_says_who_calls() {
    let world = World::new();
    let caller = world
        .review(&format!("{}\n", world.token(wanted())))
        .unwrap();
    assert_eq!(caller.to_string(), "shop/web (web)");
    assert_eq!(caller.node.as_deref(), Some("n1"));
    let unbound = Wanted {
        pod: None,
        node: None,
        ..wanted()
    };
    assert_eq!(world.review(&world.token(unbound)).unwrap().pod, None);
}

#[test]
fn a_token_counts_only_in_its_time() {
    let world = World::new();
    let token = world.token(wanted());
    let after = |seconds| world.now + Duration::from_secs(seconds);
    assert!(
        world.review_at(&token, after(3600 + 59)).is_ok(),
        "clocks differ"
    );
    assert_eq!(world.review_at(&token, after(3600 + 60)), Err(Denied::Time));
    let before = |seconds| world.now - Duration::from_secs(seconds);
    assert!(world.review_at(&token, before(60)).is_ok());
    assert_eq!(world.review_at(&token, before(61)), Err(Denied::Time));
}

#[test]
fn a_token_for_somebody_else_does_not_count() {
    let world = World::new();
    let other = Wanted {
        audience: "vault".to_owned(),
        ..wanted()
    };
    assert_eq!(world.review(&world.token(other)), Err(Denied::Audience));
}

#[test]
fn a_token_of_another_key_or_changed_or_unsigned_does_not_count() {
    let world = World::new();
    assert_eq!(
        world.review(&World::new().token(wanted())),
        Err(Denied::Signature)
    );
    let token = world.token(wanted());
    let (head, rest) = token.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let flipped = format!("{head}.{}A.{signature}", &body[..body.len() - 1]);
    assert_eq!(world.review(&flipped), Err(Denied::Signature));
    // {"alg":"none"}
    assert_eq!(
        world.review(&format!("eyJhbGciOiJub25lIn0.{body}.")),
        Err(Denied::Signature)
    );
    // {"alg":"HS256"}: the public key is no secret to sign with.
    assert_eq!(
        world.review(&format!("eyJhbGciOiJIUzI1NiJ9.{body}.{signature}")),
        Err(Denied::Signature)
    );
    assert_eq!(world.review(""), Err(Denied::Missing));
    assert_eq!(world.review("a.b.c"), Err(Denied::Signature));
    assert_eq!(world.review(&"a".repeat(1 << 20)), Err(Denied::Signature));
}

#[test]
fn a_bound_token_is_worth_as_much_as_its_pod() {
    let world = World::new();
    let bound = |name: &str, uid: &str| {
        Some(Bound {
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    };
    let table: &[(Wanted, Option<&str>)] = &[
        (
            Wanted {
                pod: bound("gone", "u1"),
                ..wanted()
            },
            Some("does not exist"),
        ),
        (
            Wanted {
                pod: bound("web", "u0"),
                ..wanted()
            },
            Some("has another uid"),
        ),
        (
            Wanted {
                pod: bound("web", ""),
                ..wanted()
            },
            Some("has another uid"),
        ),
        (
            Wanted {
                pod: bound("done", "u3"),
                ..wanted()
            },
            Some("has ended"),
        ),
        (
            Wanted {
                service_account: "cart".to_owned(),
                ..wanted()
            },
            Some("has another service account"),
        ),
        (
            Wanted {
                node: Some("n2".to_owned()),
                ..wanted()
            },
            Some("is not on the node it names"),
        ),
        (
            Wanted {
                namespace: "other".to_owned(),
                ..wanted()
            },
            Some("does not exist"),
        ),
        (
            Wanted {
                node: None,
                ..wanted()
            },
            None,
        ),
        (
            Wanted {
                pod: bound("nameless", ""),
                service_account: "default".to_owned(),
                ..wanted()
            },
            None,
        ),
    ];
    for (wanted, why) in table {
        match (world.review(&world.token(wanted.clone())), why) {
            (Ok(_), None) => {}
            (Err(Denied::Pod(_, is)), Some(why)) => assert_eq!(is, *why),
            (outcome, why) => panic!("{wanted:?}: {outcome:?} is not {why:?}"),
        }
    }
}

#[test]
fn subject_and_claims_must_agree() {
    let world = World::new();
    let mut claims: super::Claims =
        jsonwebtoken::dangerous::insecure_decode_claims(world.token(wanted())).unwrap();
    claims.sub = "system:serviceaccount:shop:admin".to_owned();
    let key = jsonwebtoken::EncodingKey::from_ec_pem(world.key.serialize_pem().as_bytes()).unwrap();
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256);
    let token = jsonwebtoken::encode(&header, &claims, &key).unwrap();
    assert_eq!(world.review(&token), Err(Denied::Subject));
}
