//! The Helm charts as an operator meets them: what they render, what they refuse, and that the
//! documents about them are true. Rendered YAML is asserted, not reviewed by eye.

#[path = "charts/access.rs"]
mod access;
#[path = "charts/cluster.rs"]
mod cluster;
#[path = "charts/helm.rs"]
mod helm;
#[path = "charts/permissions.rs"]
mod permissions;
#[path = "charts/refusals.rs"]
mod refusals;
#[path = "charts/rendered.rs"]
mod rendered;
#[path = "charts/running.rs"]
mod running;
#[path = "charts/values.rs"]
mod values;

use cluster::Cluster;
use helm::{EVERYTHING, NAMESPACE, Rendering, VARIANTS};

#[test]
fn both_charts_pass_the_linter() {
    for chart in ["heddle", "heddle-crds"] {
        helm::lint(chart, &[]);
    }
    for (_, files) in VARIANTS {
        helm::lint("heddle", files);
    }
}

/// What changes in a rendering changes here, in the same commit, for everybody to read.
/// `INSTA_UPDATE=always cargo test -p heddle-tests --test charts` writes the files anew.
#[test]
fn renderings_are_the_golden_ones() {
    for (name, files) in VARIANTS {
        let text = helm::template(files, "").expect(name);
        insta::with_settings!({
            snapshot_path => "charts/snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, {
            insta::assert_snapshot!(*name, text);
        });
    }
}

#[test]
fn every_rendering_holds_the_rules() {
    let everything = [("everything", helm::template(&[], EVERYTHING).expect("it renders"))];
    let variants = VARIANTS.iter().map(|(name, files)| {
        (*name, helm::template(files, "").unwrap_or_else(|error| panic!("{name}: {error}")))
    });
    for (name, text) in variants.chain(everything) {
        running::settings_are_taken(&text).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let problems = rendered::problems(&Rendering::parse(&text));
        assert!(problems.is_empty(), "{name}:\n{}", problems.join("\n"));
    }
}

#[test]
fn the_charts_have_the_version_of_the_workspace() {
    for chart in ["heddle", "heddle-crds"] {
        let text = helm::read(&format!("charts/{chart}/Chart.yaml"));
        let chart: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
        assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
        let images = chart["annotations"]["artifacthub.io/images"].as_str().unwrap_or_default();
        for line in images.lines().filter(|line| line.contains("image:")) {
            assert!(line.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{line}");
        }
    }
}

#[test]
fn bad_values_are_refused_with_the_field_and_the_cure() {
    refusals::check();
}

#[test]
fn every_value_is_documented() {
    let values = helm::read("charts/heddle/values.yaml");
    let page = values::page(&values).unwrap_or_else(|error| panic!("values.yaml: {error}"));
    let path = helm::root().join("docs/values.md");
    if std::fs::read_to_string(&path).is_ok_and(|written| written == page) {
        return;
    }
    std::fs::write(&path, page).expect("docs/values.md can be written");
    panic!("docs/values.md was not what charts/heddle/values.yaml says. It is now: commit it");
}

#[test]
fn every_permission_is_documented() {
    let text = helm::template(&[], "").expect("it renders");
    let granted = permissions::granted(&Rendering::parse(&text));
    let documented = permissions::documented(&helm::read("docs/permissions.md"));
    let missing: Vec<_> = granted.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&granted).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/permissions.md lacks {missing:#?}\nand lists what is not granted: {stale:#?}"
    );
    assert!(granted.len() > 20, "{granted:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_installs_upgrades_and_uninstalls() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let too_soon =
        cluster.install(&["--create-namespace"]).expect_err("no definitions").to_string();
    assert!(too_soon.contains("heddle-crds"), "{too_soon}");
    cluster.install_definitions().await?;
    let restricted = "pod-security.kubernetes.io/enforce=restricted";
    cluster
        .api
        .kubectl(&["label", "namespace", NAMESPACE, restricted])
        .await
        .unwrap()
        .ok()
        .unwrap();
    cluster::renderings_are_valid(&cluster).await?;
    cluster.install(&[])?;
    cluster::pods_are_admitted(&cluster).await?;
    cluster::releases_leave_the_authority_alone(&cluster).await?;
    cluster::settings_of_the_mesh_are_kept(&cluster).await?;
    cluster::an_outage_stops_nobody_else(&cluster).await?;
    cluster::uninstalling_holds_nothing_up(&cluster).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_may_do_what_is_listed_and_nothing_else() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.install_definitions().await?;
    cluster.install(&[])?;
    let listed: Vec<_> =
        permissions::documented(&helm::read("docs/permissions.md")).into_iter().collect();
    access::everything_listed_is_granted(&cluster, &listed).await?;
    access::nothing_else_is_granted(&cluster).await?;
    access::names_hold(&cluster).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_plane_works_as_the_chart_runs_it() -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    cluster.install_definitions().await?;
    cluster.install(&[])?;
    let before = running::refused(&cluster).await?;
    let handle = running::start(&cluster).await?;
    running::does_its_work(&cluster, &handle).await?;
    assert_eq!(running::refused(&cluster).await?, before);
    assert!(running::is_refused_something(&cluster).await?, "a refusal is not seen");
    assert_ne!(running::refused(&cluster).await?, before, "a refusal is not counted");
    handle.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(())
}
