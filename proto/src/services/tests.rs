#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::base::id::ServiceKey;
use crate::model::netmap::Transport;
use crate::model::rules::{RuleTarget, Source};

const BOUTIQUE: &str = include_str!("../../../tests/lab/boutique.services.toml");
const VM: &str = "# what runs here\nversion = 1\n[[serve]]\nservice = \"productcatalogservice\"\nport    = 3550\n";

fn taken(text: &str) -> Services {
    match parse(text, "services.toml") {
        Ok(parsed) => parsed.services,
        Err(all) => panic!("{all}"),
    }
}

fn service<'s>(services: &'s Services, key: &str) -> &'s ServiceSpec {
    let key: ServiceKey = key.parse().unwrap();
    services.services.iter().find(|s| s.key == key).unwrap()
}

/// A file with two services and whatever rules and tests a case needs.
fn with(rules: &str) -> String {
    format!(
        r#"version = 1
[[site]]
name = "c1"
pods = ["10.8.0.0/14"]
[[node]]
name = "edge"
key = "mEO9f2SJ1cFyUxV2gPbzWvQQHNv2ZBuA3V0aZJ8r1mE="
site = "c1"
[[service]]
name = "web"
ports = {{ http = "80->8080", admin = 9000 }}
backends = [{{ addr = "10.8.0.10", node = "n1" }}, {{ host = "vm" }}]
[[service]]
name = "db"
port = 5432
backends = [{{ host = "vm" }}, {{ host = "edge" }}]
[[service]]
name = "log"
port = "514/udp"
{rules}"#
    )
}

fn failing(rules: &str) -> Vec<&'static str> {
    match parse(&with(rules), "services.toml") {
        Ok(_) => Vec::new(),
        Err(all) => all.list.iter().map(|d| d.code).collect(),
    }
}

#[test]
fn the_boutique_is_read_as_it_is_written() {
    let parsed = parse(BOUTIQUE, "/etc/mesh-coordinator/services.toml").unwrap();

    let services = parsed.services;

    // The names that Istio gave end in `global`, and so do they here.
    let [warning] = &*parsed.warnings else { panic!("{:?}", parsed.warnings) };
    assert!(warning.code == "MESH0146" && warning.message.starts_with("`global` is a public suffix"), "{warning:?}");
    assert_eq!(services.mesh.name.as_ref().map(ToString::to_string).as_deref(), Some("boutique"));
    assert_eq!(services.mesh.domains.len(), 2);
    assert_eq!((services.sites.len(), services.services.len()), (3, 11));
    assert_eq!(services.sites[0].kind, SiteKind::Kubernetes);
    assert_eq!(services.sites[0].locality, ["us-west1", "us-west1-b"]);
    let email = &service(&services, "emailservice").ports[0];
    assert_eq!((email.transport, email.port, email.target), (Transport::Tcp, 5000, 8080));
    let catalog = service(&services, "productcatalogservice");
    let weights: Vec<_> = catalog.backends.iter().map(|b| b.weight).collect();
    assert_eq!(weights, [Some(80), Some(20)]);
    assert_eq!(catalog.backends[0].at, BackendAt::Host("pc-vm-1".parse().unwrap()));
    let rule = &services.allows[1].rule;
    assert_eq!(rule.file, "/etc/mesh-coordinator/services.toml");
    let line = BOUTIQUE.lines().nth(rule.line as usize - 1);
    assert_eq!(line, Some("[[allow]]"));
    assert_eq!(rule.from, [Source::Service("frontend".parse().unwrap())]);
    assert_eq!(rule.to.len(), 7);
    assert_eq!(services.tests[1].deny.len(), 3);
}

#[test]
fn a_node_file_is_read_as_it_is_written() {
    let (serves, warnings) = parse_node(VM, "/etc/meshd/services.toml").unwrap();
    assert_eq!(warnings, []);
    assert_eq!(serves.len(), 1);
    assert_eq!(serves[0].service.to_string(), "productcatalogservice");
    assert_eq!((serves[0].port, serves[0].bind), (Some(3550), None));

    let text = "version = 1\n[[serve]]\nservice = \"db.prod\"\nbind = \"127.0.0.1:5432\"\nhealth = { tcp = true, every = \"2s\" }\n";
    assert!(parse_node(text, "f").is_err(), "nothing asks how it is");
    let (serves, warnings) = parse_node_accepted(text, "f").unwrap();
    assert_eq!(warnings.iter().map(|w| (w.severity, w.code)).collect::<Vec<_>>(), [(Severity::Warning, "MESH0110")]);
    assert_eq!(serves[0].bind, "127.0.0.1:5432".parse().ok());
    assert_eq!(serves[0].health.as_ref().map(|h| h.every), Some(Duration::from_secs(2)));
}

#[test]
fn every_key_of_the_grammar_is_taken_of_a_text_that_was_taken_before() {
    let text = r#"
        version = 1
        [mesh]
        name = "shop"
        default = "deny"
        domains = ["mesh.internal"]
        v4 = "10.200.0.0/16"
        [[site]]
        name = "c1"
        kind = "kubernetes"
        pods = "10.8.0.0/14"
        locality = "eu"
        [[node]]
        name = "router"
        key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
        endpoint = "[2001:db8::7]:51820"
        site = "c1"
        [[service]]
        name = "cart"
        namespace = "prod"
        ports = { grpc = 7070, dns = "53/udp", dns-tcp = 53 }
        health = { http = "/healthz", every = "500ms", fall = 2, rise = 1 }
        route = { prefer = ["c1"], spill_below = 0.5, sticky = "client", max_conn_age = "1h", retry_syn = false }
        strict = true
        [[service.backends]]
        host = "router"
        [[service.backends]]
        addr = "10.8.0.10"
        node = "n1"
        name = "pod"
        weight = 0
        [[allow]]
        from = "any"
        to = ["cart.prod:grpc", "host:router", "site:c1"]
        [[test]]
        from = "sa:prod/loadgen"
        accept = "cart.prod:7070"
    "#;

    let Parsed { services, warnings } = parse_accepted(text, "f").unwrap();

    assert_eq!(warnings, []);
    let idle: Vec<_> = services.idle.iter().map(|line| line.split('`').nth(1).unwrap()).collect();
    assert_eq!(idle, ["health", "spill_below", "max_conn_age", "retry_syn", "strict", "sa:"]);
    assert!(
        services.idle[4].starts_with("f:24:9: warning[MESH0110]: `strict` in [[service]] does nothing"),
        "{idle:?}"
    );
    assert_eq!(services.mesh.range.to_string(), "10.200.0.0/16");
    assert_eq!(services.nodes[0].key.0, [0; 32]);
    let cart = service(&services, "cart.prod");
    let names: Vec<_> = cart.ports.iter().filter_map(|p| p.name.as_ref()).map(ToString::to_string).collect();
    assert_eq!(names, ["grpc", "dns", "dns-tcp"], "ports stand in the order of the file");
    let health = cart.health.as_ref().unwrap();
    assert_eq!(health.check, HealthCheck::Http("/healthz".into()));
    assert_eq!((health.every, health.fall, health.rise), (Duration::from_millis(500), 2, 1));
    assert_eq!(cart.route.prefer, Some(Prefer::Sites(vec!["c1".parse().unwrap()])));
    assert!(cart.route.sticky && !cart.route.retry_syn && cart.strict);
    assert_eq!(cart.route.max_conn_age, Some(Duration::from_secs(3600)));
    assert_eq!(cart.backends[1].weight, Some(0));
    let to = &services.allows[0].rule.to;
    assert_eq!(to[0], RuleTarget::Port("cart.prod".parse().unwrap(), 7070));
}

#[test]
fn a_word_that_does_nothing_refuses_a_new_text_alone_and_with_its_place() {
    for (from, to) in [
        ("port = 5432", "port = 5432\nstrict = true"),
        ("port = 5432", "port = 5432\nstrict = \"not even read\""),
        ("port = 5432", "port = 5432\nhealth = { tcp = true }"),
        ("port = 5432", "port = 5432\nroute = { spill_below = 0.5 }"),
        ("port = 5432", "port = 5432\nroute = { max_conn_age = \"1h\" }"),
        ("port = 5432", "port = 5432\nroute = { retry_syn = true }"),
        ("\"web\"", "\"sa:prod/web\""),
        ("from = [\"log\"]", "from = [\"sa:prod/web\"]"),
    ] {
        let plain = with("[[allow]]\nfrom = [\"log\"]\nto = [\"db\"]\n[[test]]\nfrom = \"web\"\ndeny = [\"log\"]\n");
        assert_eq!(taken(&plain).idle, Vec::<String>::new());
        let at = plain.rfind(from).unwrap();
        let text = format!("{}{to}{}", &plain[..at], &plain[at + from.len()..]);

        let found = parse(&text, "f").unwrap_err().list;

        assert_eq!(
            found.iter().map(|d| (d.severity, d.code)).collect::<Vec<_>>(),
            [(Severity::Error, "MESH0110")],
            "{to}"
        );
        let word = &text[found[0].span.start..found[0].span.end];
        assert!(to.contains(word) && found[0].message.starts_with(&format!("`{word}")), "{word}: {found:?}");
    }
}

#[test]
fn a_text_that_was_taken_stays_taken_however_many_of_its_words_do_nothing() {
    let service = |i: usize| format!("[[service]]\nname = \"s{i}\"\nport = 80\nstrict = true\n");
    let text = format!("version = 1\n{}", (0..150).map(service).collect::<String>());

    let parsed = parse_accepted(&text, "f").unwrap();

    assert_eq!((parsed.services.services.len(), parsed.services.idle.len()), (150, 100));
    let more: Vec<_> = parsed.warnings.iter().map(|w| &*w.message).collect();
    assert_eq!(more, ["50 more warnings are not shown"]);
    let wrong = parse_accepted(&format!("{text}[[site]]\nnam = \"x\"\n"), "f").unwrap_err();
    assert!(wrong.list.iter().any(|d| d.code == "MESH0104"), "warnings hide no error");
}

#[test]
fn a_cluster_without_pods_is_a_warning() {
    let site = |keys: &str| parse(&format!("version = 1\n[[site]]\nname = \"c1\"\n{keys}\n"), "f").unwrap().warnings;
    assert_eq!(site("kind = \"kubernetes\"").iter().map(|w| w.code).collect::<Vec<_>>(), ["MESH0145"]);
    assert_eq!(site("kind = \"kubernetes\"\npods = \"10.8.0.0/14\""), []);
    assert_eq!(site("kind = \"hosts\""), []);
}

#[test]
fn a_test_is_judged_by_every_word_that_means_its_caller() {
    let allow = |from: &str, to: &str| format!("[[allow]]\nfrom = [\"{from}\"]\nto = [\"{to}\"]\n");
    let accept = |from: &str, to: &str| format!("[[test]]\nfrom = \"{from}\"\naccept = [\"{to}\"]\n");
    let deny = |from: &str, to: &str| format!("[[test]]\nfrom = \"{from}\"\ndeny = [\"{to}\"]\n");
    let (missing, permitted) = (vec!["MESH0160"], vec!["MESH0161"]);
    for (rules, expected, why) in [
        (allow("log", "web") + &accept("log", "web:80"), vec![], "a service means all of its ports"),
        (allow("log", "web:80") + &accept("log", "web"), missing.clone(), "one port is not all"),
        (allow("log", "web:80") + &deny("log", "web:9000"), vec![], "another port is another matter"),
        (allow("log", "web:80") + &deny("log", "web"), permitted.clone(), "one port is too many"),
        (allow("any", "db") + &accept("web", "db:5432"), vec![], "any includes everybody"),
        (allow("log", "any") + &accept("log", "db:5432"), vec![], "any includes everything"),
        (allow("host:vm", "log") + &accept("web", "log:514"), missing.clone(), "web runs elsewhere too"),
        (allow("host:vm", "log") + &deny("web", "log:514"), permitted.clone(), "web runs on vm"),
        (allow("db", "log") + &deny("web", "log:514"), permitted.clone(), "web and db share vm"),
        (allow("site:c1", "log") + &deny("db", "log:514"), permitted.clone(), "edge is in c1"),
        (allow("site:c1", "log") + &deny("web", "log:514"), permitted.clone(), "c1 alone can hold web's pod"),
        (allow("web", "log") + &deny("any", "log:514"), permitted.clone(), "any is somebody"),
        (allow("web", "log") + &accept("any", "log:514"), missing.clone(), "any is everybody"),
        (allow("log", "host:edge") + &deny("log", "db:5432"), permitted.clone(), "edge backs db"),
        (allow("log", "host:edge") + &accept("log", "db:5432"), missing.clone(), "vm backs db too"),
        (allow("log", "host:vm") + &accept("log", "host:vm"), vec![], "a host is a target"),
        (accept("web", "db:5432"), missing.clone(), "nothing is allowed that no rule allows"),
        (deny("web", "db:5432"), vec![], "nothing is allowed that no rule allows"),
    ] {
        assert_eq!(failing(&rules), expected, "{why}:\n{rules}");
    }
}

#[test]
fn masqueraded_networks_are_meant_by_their_own_word_alone() {
    let text = |rest: &str| with(&format!("[[allow]]\nfrom = [\"any\"]\nto = [\"web\"]\n{rest}"));
    let test = |word: &str| format!("[[test]]\nfrom = \"masqueraded:edge\"\n{word} = [\"web:80\"]\n");
    taken(&text(&test("deny")));
    assert!(parse(&text(&test("accept")), "services.toml").is_err());
    let rule = "[[allow]]\nfrom = [\"masqueraded:edge\"]\nto = [\"web\"]\n";
    taken(&text(&format!("{rule}{}", test("accept"))));
    let as_target = "[[allow]]\nfrom = [\"any\"]\nto = [\"masqueraded:edge\"]\n";
    assert!(parse(&text(as_target), "services.toml").is_err());
}

#[test]
fn a_failing_test_points_at_its_word_and_at_the_rule() {
    let rules = "[[allow]]\nfrom = [\"web\"]\nto = [\"db\"]\n[[test]]\nfrom = \"web\"\ndeny = [\"log\", \"db:5432\"]\n";
    let text = with(rules);

    let all = parse(&text, "services.toml").unwrap_err();

    let one = &all.list[0];
    assert_eq!(&text[one.span.start..one.span.end], "\"db:5432\"");
    let rule = one.secondary[0].0;
    assert_eq!(&text[rule.start..rule.end], "[[allow]]");
}

#[test]
fn a_file_full_of_mistakes_is_refused_with_a_short_report() {
    let size = MAX_TEXT / 4;
    for text in [
        "[".repeat(size),
        "a\n".repeat(size / 2),
        "a = [\n".repeat(size / 6),
        "a = [1 1 1 1\n".repeat(size / 13),
        format!("a = [\n{}", "[a]\n".repeat(size / 4)),
        format!("version = 1\n[[allow]]\nfrom = [{}]\nto = [\"any\"]", "\"xyz\",".repeat(size / 7)),
        "[[site]]\nname=\"x\"\n".repeat(MAX_TEXT / 18),
        "x".repeat(MAX_TEXT + 1),
    ] {
        let all = parse(&text, "f").unwrap_err();
        let report = all.render(false);
        assert!(all.list.len() <= 101, "{} diagnostics", all.list.len());
        assert!(report.len() < 100_000, "a report of {} bytes", report.len());
    }
}

/// A file is taken, or refused with a reason whose place lies in the text and which can be drawn.
fn judged(text: &str) -> Result<(), TestCaseError> {
    let all = [
        parse(text, "f").err(),
        parse_accepted(text, "f").err(),
        parse_node(text, "f").err(),
        parse_node_accepted(text, "f").err(),
    ];
    for one in all.iter().flatten() {
        prop_assert!(one.summary().contains("error"), "refused without a reason");
        for d in &one.list {
            let spans = std::iter::once(d.span).chain(d.secondary.iter().map(|s| s.0));
            for span in spans {
                let inside = span.start <= span.end && span.end <= text.len();
                prop_assert!(inside && text.is_char_boundary(span.start), "{d:?} in {} bytes", text.len());
            }
        }
        prop_assert!(one.render(false).contains("--> f:"));
    }
    Ok(())
}

/// Pieces that files are made of, so that random texts get past the first line.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "version = 1\n",
        "[mesh]\n",
        "[[site]]\n",
        "[[service]]\n",
        "[[allow]]\n",
        "[[test]]\n",
        "[[node]]\n",
        "[[serve]]\n",
        "[service]\n",
        "[a.b]\n",
        "name = ",
        "port = ",
        "ports = ",
        "backends = ",
        "from = ",
        "to = ",
        "pods = ",
        "health = ",
        "route = ",
        "accept = ",
        "deny = ",
        "v4 = ",
        "{ ",
        " }",
        "[",
        "]",
        ", ",
        "\n",
        "\"cart\"",
        "\"c1\"",
        "\"host:vm\"",
        "\"10.8.0.0/14\"",
        "\"5000->8080/tcp\"",
        "host = \"vm\"",
        "addr = \"10.8.0.10\"",
        "80",
        "-1",
        "1.5",
        "true",
        "2020-01-01",
        "\"",
        "'",
        "\"\"\"",
        "#",
        "=",
        ".",
        "ä",
        "\r\n",
        "\t",
        "\u{feff}",
        "\0",
        "日本",
    ]);
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

#[test]
fn a_node_where_a_service_is_meant_is_told_as_host_also_if_only_the_mesh_knows_it() {
    let text = with("[[allow]]\nfrom = [\"vm-1\"]\nto = [\"db\"]\n");
    let alone = parse(&text, "services.toml").unwrap_err().render(false);
    assert!(alone.contains("a node is written `host:vm-1`"), "{alone}");
    let members = BTreeSet::from(["vm-1".parse().unwrap()]);
    let known = parse_among(&text, "services.toml", members.clone()).unwrap_err();
    let [one] = &*known.list else { panic!("{known}") };
    assert_eq!((one.code, one.label.as_str()), ("MESH0150", "did you mean `host:vm-1`?"));
    let named = with("[[allow]]\nfrom = [\"edge\"]\nto = [\"db\"]\n");
    let named = parse(&named, "services.toml").unwrap_err().render(false);
    assert!(named.contains("did you mean `host:edge`?"), "{named}");
    assert!(parse_among(&text.replace("\"vm-1\"", "\"host:vm-1\""), "services.toml", members).is_ok());
}

#[test]
fn a_domain_that_hides_names_of_strangers_is_a_warning_and_taken() {
    let text = "version = 1\n[mesh]\nname = \"m\"\ndomains = [\"mesh.internal\", \"com\", \"mesh\"]\n";
    let parsed = parse(text, "services.toml").unwrap();
    assert_eq!(parsed.services.mesh.domains.len(), 3);
    let [warning] = &*Diagnostics::new("services.toml", text, parsed.warnings).lines() else { panic!("one warning") };
    assert!(warning.starts_with("services.toml:4:29: warning[MESH0146]: `com` is a public suffix: "), "{warning}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        judged(&text)?;
    }

    #[test]
    fn no_heap_of_pieces_makes_the_parser_panic(text in pieces()) {
        judged(&text)?;
    }

    #[test]
    fn a_boutique_with_one_character_changed_is_taken_or_refused_with_a_place(
        at in any::<prop::sample::Index>(),
        with in prop::sample::select("\0\n\"'[]{}=,.#:-/> aZ09äß\u{202e}".chars().collect::<Vec<_>>()),
        how in 0..3,
    ) {
        let places: Vec<usize> = BOUTIQUE.char_indices().map(|(i, _)| i).collect();
        let at = places[at.index(places.len())];
        let mut text = BOUTIQUE.to_owned();
        match how {
            0 => text.insert(at, with),
            1 => drop(text.remove(at)),
            _ => {
                text.remove(at);
                text.insert(at, with);
            }
        }
        judged(&text)?;
    }

    #[test]
    fn a_boutique_cut_anywhere_is_taken_or_refused_with_a_place(at in any::<prop::sample::Index>()) {
        let places: Vec<usize> = BOUTIQUE.char_indices().map(|(i, _)| i).collect();
        judged(&BOUTIQUE[..places[at.index(places.len())]])?;
    }
}
