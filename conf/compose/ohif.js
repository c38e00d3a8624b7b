window.config = {
  name: 'cxr_node',
  routerBasename: '/',
  extensions: [],
  modes: [],
  showStudyList: true,
  // results open when they are asked for, without a question in between
  disableConfirmationPrompts: true,
  measurementTrackingMode: 'simplified',
  defaultDataSourceName: 'pacs',
  dataSources: [
    {
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
      sourceName: 'pacs',
      configuration: {
        friendlyName: 'Orthanc',
        name: 'pacs',
        wadoUriRoot: '/dicom-web',
        qidoRoot: '/dicom-web',
        wadoRoot: '/dicom-web',
        qidoSupportsIncludeField: true,
        supportsReject: false,
        imageRendering: 'wadors',
        thumbnailRendering: 'wadors',
        enableStudyLazyLoad: true,
        supportsFuzzyMatching: false,
        supportsWildcard: true,
        dicomUploadEnabled: false,
      },
    },
  ],
};
