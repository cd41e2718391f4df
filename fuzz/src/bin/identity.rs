//! SPIFFE identities of the mesh.
#![no_main]

use ambit_model::Identity;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.as_str(), text);
        let (domain, namespace) = (identity.trust_domain(), identity.namespace());
        let account = identity.service_account();
        assert_eq!(
            Identity::new(domain, namespace, account),
            Ok(identity.clone())
        );
        assert_eq!(identity.principal(), &text["spiffe://".len()..]);
    }
});
