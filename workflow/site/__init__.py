"""The docs site: collected pages, built by Sphinx into site/, with every link checked (`python -m workflow.site`)."""
