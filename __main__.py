from groundup.cli.main import main

raise SystemExit(main())
